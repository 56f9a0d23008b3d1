"""Planning: opening what a recipe names, checking that the surgery is meaningful, and the plan with every cost.

Lives here: inputs, tokenizers, vocabularies, lineage, disjoint rows, checks, costs, the plan and its text.
May not: run a model or write files (surgery).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
