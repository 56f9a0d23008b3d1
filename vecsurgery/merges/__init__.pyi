from ._registry import Merge as Merge
from ._registry import Merged as Merged
from ._registry import MergedTensor as MergedTensor
from ._registry import MergeFunction as MergeFunction
