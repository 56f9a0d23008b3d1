from .answers import AnswerLoss as AnswerLoss
from .answers import answer_nll as answer_nll
