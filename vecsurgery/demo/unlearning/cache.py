"""The unlearning demo's files for one seed: world, original and unlearned checkpoint."""

from dataclasses import asdict, dataclass
from pathlib import Path

from vecsurgery.demo.folders import cache_folder, key_of, made_once, save
from vecsurgery.demo.shape import llama
from vecsurgery.demo.unlearning.settings import Settings
from vecsurgery.demo.unlearning.world import World, make_world
from vecsurgery.progress import Progress, silent

_SOURCES = tuple(
    Path(__file__).with_name(f"{name}.py") for name in ("settings", "words", "world", "tokenizer", "train", "cache")
)
_GENERATION = {"do_sample": False, "max_new_tokens": 16}


@dataclass(frozen=True)
class Prepared:
    """Folders of one seed: two checkpoints as transformers loads them, and the world's data files."""

    seed: int
    original: Path
    unlearned: Path
    data: Path


def prepare(
    seed: int, settings: Settings | None = None, *, cache: Path | None = None, progress: Progress = silent
) -> Prepared:
    """World, original and unlearned model of `seed`; trained on the first call, then found in the cache.

    `cache`: folder of the cache, by default `cache_folder()`. The entry is named by a hash of the settings, of the code
    and of the libraries' versions, and appears only when it is complete. Same arguments on the same machine: same
    bytes.
    """
    settings = settings or Settings()

    def make(folder: Path) -> None:
        _make(_at(folder, seed), settings, progress)

    key = key_of(asdict(settings), _SOURCES)
    return _at(made_once(cache or cache_folder(), "demo-unlearning", key, seed, make), seed)


def _at(folder: Path, seed: int) -> Prepared:
    return Prepared(seed, folder / "original", folder / "unlearned", folder / "data")


def _make(prepared: Prepared, settings: Settings, progress: Progress) -> None:
    """Writes the three folders."""
    from vecsurgery.demo.training import reproducible
    from vecsurgery.demo.unlearning.tokenizer import encode_questions, encode_sentences, make_tokenizer
    from vecsurgery.demo.unlearning.train import new_model, train_original, unlearn

    world: World = make_world(prepared.seed, settings)
    world.write(prepared.data)
    tokenizer = make_tokenizer(world, settings.vocabulary)
    config = llama(settings, tokenizer.get_vocab_size(), "float32")
    sentences = encode_sentences(tokenizer, [*world.general, *world.general_test])
    with reproducible(settings.threads):
        model = new_model(settings, tokenizer.get_vocab_size(), prepared.seed)
        rows = encode_questions(tokenizer, world.full) + sentences
        train_original(model, rows, settings, seed=prepared.seed, progress=progress)
        save(prepared.original, model, tokenizer, config, generation=_GENERATION)
        unlearn(model, encode_questions(tokenizer, world.forget), settings, seed=prepared.seed, progress=progress)
        save(prepared.unlearned, model, tokenizer, config, generation=_GENERATION)
