"""The tokenizer of models that are trained from scratch: a small byte-level BPE.

Every word that our grammar, narration and questions have is one token, and any other text can be
spelt in bytes.
"""

import os
import re
from collections.abc import Iterable

import tokenizers

import instructions
from episode import COLOURS, write_atomic
from vla import questions
from vla.folder import read_json

SPECIAL_TOKENS = (
    '<|pad|>',
    '<|image_pad|>',
    '<|state_pad|>',
    '<|vla|>',
    '<|action_start|>',
    '<|action_pad|>',
    '<|action_pass|>',
    '<|action_end|>',
    '<|im_start|>',
    '<|im_end|>',
)
VOCABULARY_SIZE = 2048
PIECE = re.compile(r'\w+|[^\s\w]+')  # The tokenizer never joins two of these.
TEMPLATE_WORDS = """
the a of on onto in into to with and is it its both over under down up at from then now put
press place take goes join hold keep give pull apart off reach grasp lift carry align release
retreat wait rest hand hands left right near far front back top end corner cell row column plate
baseplate brick bricks stud studs air lower upper red blue yellow green white orange : ; , . ?
2x2 2x3 2x4 2x6 2x8 2x10 0 1 2 3 4 5 6 7 8 9 across after are assemble away be below beside
black bridge bring build by centre clear close comes connect crosswise did does done edges
finished flush follow for further gets gives go half has holds how joined lay lies lined long
make many middle move nearer next one other part pass pick plan plugged pressed presses pulls
puts quarter remove says separate set sit small something span square stack step table task this
together tower towers turned two undo unplug unplugs went what where which wrong you fell broke
joint nothing none yes no lengthwise pointing sideways them""".split()


def known_words() -> set[str]:
    """Words that are one token: of the grammar, of questions and their answers, of narration."""
    texts = [text for texts in questions.TEMPLATES.values() for text in texts]
    read = ' '.join(instructions.plain(text.format(x='')) for text in texts)
    written = ' '.join(PIECE.findall(instructions.ASK_BACK))
    listed = {*TEMPLATE_WORDS, *COLOURS, *read.split(), *written.split()}
    return listed | instructions.vocabulary()


def parse_tokenizer(text: str, where: str) -> tokenizers.Tokenizer:
    """Make a tokenizer of the JSON text of a `tokenizers` file.

    Args:
        text: JSON.
        where: The text stands there, for the error.

    Raises:
        ValueError: It is none.
    """
    try:
        tokenizer = tokenizers.Tokenizer.from_str(text)
    except Exception as fault:  # noqa: BLE001 -- the library raises nothing more special
        raise ValueError(f'{where} is no tokenizer: {fault}') from None
    vocab = tokenizer.get_vocab()
    if len(set(vocab.values())) < len(vocab):
        raise ValueError(f'{where} is no tokenizer: several of its {len(vocab)} words have one id')
    return tokenizer


def load_tokenizer(path: str | os.PathLike) -> tokenizers.Tokenizer:
    """Read a tokenizer.json.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no tokenizer; the text names the file.
    """
    read_json(os.fspath(path))  # its errors say more
    with open(path, encoding='utf-8') as f:
        return parse_tokenizer(f.read(), str(path))


def read_text(path: str | os.PathLike) -> str:
    """JSON text of a tokenizer that has the special tokens of models trained from scratch.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no tokenizer, or lacks tokens; the text names the file.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f'tokenizer {path}: no such file; assets/tokenizer.json is ours')
    tokenizer = load_tokenizer(path)
    missing = missing_tokens(tokenizer)
    if missing:
        raise ValueError(
            f'{path} lacks {", ".join(missing)}; make one: python data.py tokenizer --out=FILE'
        )
    with open(path, encoding='utf-8') as f:
        return f.read()


def missing_tokens(tokenizer: tokenizers.Tokenizer) -> list[str]:
    """The special tokens that a tokenizer has not."""
    return [name for name in SPECIAL_TOKENS if tokenizer.token_to_id(name) is None]


def make_tokenizer(
    texts: Iterable[str], path: str | os.PathLike
) -> tuple[tokenizers.Tokenizer, list[str]]:
    """Train a tokenizer on the words of `texts` and known_words(), and write it to `path`.

    Each word is read equally often, so that rare ones stay whole, too.

    Returns:
        The tokenizer, and the words that take more than one token.
    """
    words = sorted({word for text in texts for word in text.split()} | known_words())
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    pieces = tokenizers.Regex(r' ?[\p{L}\p{N}]+| ?[^\s\p{L}\p{N}]+|\s+')  # '2x4' is one piece
    # The first word is spelt like the others.
    tokenizer.normalizer = tokenizers.normalizers.Prepend(' ')
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(pieces, 'isolated'),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
        # Any text can be encoded with every byte in it.
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([' '.join(words)] * 10, trainer)
    write_atomic(path, tokenizer.to_str(pretty=True).encode())
    return tokenizer, [word for word in words if len(tokenizer.encode(word).ids) > 1]
