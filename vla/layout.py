"""Who sees whom, and where a token stands: the token layout of a batch, its mask and its angles.

A row of training is one sequence,
    user part | assistant part | noise sample 0 | noise sample 1 | ...
of which the first two are the prefix: text with places for pictures and the state. The rest is the
suffix: every noise sample is H rows of the same action chunk at its own noise and flow time. A
`Layout` describes the sequence with a few integers per token. The attention mask and the rotary
angles follow from these alone, in training as in inference from a cache.

Padding may stand on either side, and a row may hold several documents that do not see each other;
a batch says so with `document` in the place of `total_len` (see `documents`).
"""

# B batch, L prefix tokens, K noise samples, H horizon, T tokens, Tq queries, Tk keys, c head width
import functools
from typing import Any, NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vla import layers

Batch = dict[str, Any]  # the table of its keys stands on top of data.py

PAD, USER, ASSISTANT, ACTION = range(4)  # token kinds in a Layout
MASKED = -1e4  # is added to a score: exp() of it is exactly 0, and bf16 can hold it
ALIGNED = 8  # numbers: CUDA kernels of attention read a mask so many at a time
LAST = 1 << 30  # the order of rows of a chunk: they come after every token of the prefix


class Layout(NamedTuple):
    """What a token may see and where it stands; one entry per token, (B, T).

    position       (3, B, T) rotary position on the axes time, row, column; equal for text
    order          a token sees tokens of the same or of a lower order
    document       a token sees tokens of its own document; -1 is padding
    noise_sample   rows of a noise sample are seen by that noise sample only; -1 for the prefix
    kind           PAD, USER, ASSISTANT or ACTION
    reads          bool, whether the token may see the assistant part
    """

    position: Tensor
    order: Tensor
    document: Tensor
    noise_sample: Tensor
    kind: Tensor
    reads: Tensor

    def join(self, other: 'Layout') -> 'Layout':
        """Describe these tokens and the other ones behind them."""
        fields = [torch.cat(pair, -1) for pair in zip(self, other)]
        return Layout(*fields)

    def after(self, *kinds: int) -> Tensor:
        """The first position (B) that no token of these kinds has reached.

        Only the last document of each row counts.
        """
        position = self.position.amax(0)  # (B, T)
        member = stand_for(self.kind, *kinds)
        member = member & (self.document == self.last_document)
        return position.masked_fill(~member, -1).amax(1) + 1

    @property
    def last_document(self) -> Tensor:
        """The number of the last document of each row, (B, 1)."""
        return self.document.amax(1, keepdim=True)


def attention_bias(
    query: Layout, key: Layout, dtype: torch.dtype = torch.float32, groups: int = 1
) -> Tensor:
    """0 where a query may look, MASKED elsewhere: (B, groups, Tq, Tk).

    Every token sees itself, padding too, so that no row of scores is all MASKED. A boolean mask
    would be turned into such numbers by every single call of attention, and rows that do not begin
    at a multiple of ALIGNED numbers would be copied to where they do.

    Args:
        query: the tokens that look.
        key: those that are looked at.
        dtype: of the result.
        groups: heads that share keys, see layers.attend; all of them see the same.
    """
    q = Layout(*(field[..., None] for field in query))
    k = Layout(*(field[..., None, :] for field in key))
    visible = (k.order <= q.order) & (k.document == q.document)
    visible &= (k.noise_sample < 0) | (k.noise_sample == q.noise_sample)
    visible &= q.reads | (k.kind != ASSISTANT)
    B, Tq, Tk = visible.shape
    width = -(-Tk // ALIGNED) * ALIGNED
    bias = torch.zeros(B, groups, Tq, width, device=visible.device, dtype=dtype)
    return bias[..., :Tk].masked_fill_(~visible.unsqueeze(1), MASKED)


def rotary_tables(
    position: Tensor,
    head_dim: int,
    theta: float,
    mrope_section: tuple[int, ...],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Cosine and signed sine of the rotary angles, (B, T, 1, c) each.

    Args:
        position: (3, B, T), on the axes time, row and column.
        head_dim: c.
        theta: base of the frequencies.
        mrope_section: how many of the c/2 frequencies each axis turns (M-RoPE of Qwen2-VL).
        dtype: of the tables; the angles are float32.
    """
    pairs = torch.arange(0, head_dim, 2, device=position.device, dtype=torch.float32)
    ramp = pairs / head_dim
    axes = []
    for axis, count in zip(position, mrope_section):
        axes.append(axis[..., None].expand(-1, -1, count))
    turning = torch.cat(axes, -1)  # (B, T, c/2)
    return layers.rotation(turning.float() * theta**-ramp, dtype)


# -----------------------------------------------------------------------------
# the prefix


def column_of(x: Tensor) -> Tensor:
    """The number of its column at every place of x (B, L)."""
    return torch.arange(x.shape[1], device=x.device).expand(x.shape)


def documents(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """What the tokens of a batch belong to.

    Rows are padded on the right to `total_len`, or the batch holds `document` (B, L), an attention
    mask minus 1 that also numbers several documents in a row. `user_len` is (B), or with `document`
    (B, documents); with `document` it may be missing, and then all is user part.

    Returns:
        document (B, L), the number of the token's document in its row, -1 for padding;
        place (B, L), the number of the token in its document;
        user (B, L), whether the token is of the user part.

    Raises:
        ValueError: the batch says neither.
    """
    ids = batch['input_ids']
    index = column_of(ids)
    if 'document' not in batch:
        missing = [name for name in ('user_len', 'total_len') if name not in batch]
        if missing:
            raise ValueError(
                f'the batch lacks {" and ".join(missing)} (B): how many tokens of each row of '
                'input_ids are user part, and how many are no padding; Processor.pad makes them'
            )
        user = index < batch['user_len'][:, None]
        real = index < batch['total_len'][:, None]
        return torch.where(real, 0, -1), index, user
    document = batch['document']
    before = F.pad(document, (1, 0), value=-2)[:, :-1]
    begins = document != before
    start = torch.where(begins, index, 0).cummax(1).values
    place = index - start
    if 'user_len' not in batch:
        return document, place, document >= 0
    user_len = batch['user_len'].view(len(ids), -1)  # (B, documents)
    user_len = user_len.gather(1, document.clamp(min=0))  # (B, L)
    return document, place, place < user_len


def prefix_layout(
    document: Tensor,
    place: Tensor,
    user: Tensor,
    position: Tensor,
    causal: bool,
) -> Layout:
    """Layout of user and assistant parts.

    Args:
        document: see `documents`, as for place and user; (B, L) each.
        place: number of the token in its document.
        user: whether the token is of the user part.
        position: (3, B, L) rotary positions.
        causal: whether the user part is causal (EO-1), too; the assistant part always is.
    """
    index = column_of(document)
    order = index
    if not causal:  # one order for the whole user part makes it bidirectional
        order = torch.where(user, index - place, index)
    kind = torch.where(user, USER, ASSISTANT)
    kind = torch.where(document < 0, PAD, kind)
    noise_sample = torch.full_like(index, -1)
    return Layout(position, order, document, noise_sample, kind, torch.ones_like(user))


def column_after(member: Tensor) -> Tensor:
    """The column (B) after the last True of each row of bool (B, L)."""
    after = column_of(member) + 1
    return (member * after).amax(1)


def stand_for(ids: Tensor, *wanted: int | None) -> Tensor:
    """Where one of these ids stands, bool (B, L); None is an id that the tokenizer lacks."""
    found = [ids == i for i in wanted if i is not None]
    if not found:
        return torch.zeros_like(ids, dtype=torch.bool)
    return functools.reduce(torch.logical_or, found)


def fill_places(x: Tensor, places: Tensor, values: Tensor | None) -> Tensor:
    """Put embeddings where tokens stand for them.

    There have to be as many places as values. To count them would make a GPU answer in the middle
    of a step; VLA.check_batch does it beforehand.

    Args:
        x: token embeddings (B * L, D).
        places: bool (B, L).
        values: (n, D) in order of appearance; None where the batch brings nothing of the kind.
    """
    if values is None:
        return x
    # The number of places is known, so that nobody need look at the ids.
    at = places.flatten().nonzero_static(size=len(values)).squeeze(1)
    return x.index_copy(0, at, values.to(x.dtype))


# -----------------------------------------------------------------------------
# what follows the prefix


def chunk_layout(prefix: Layout, reads: Tensor, horizon: int, causal: bool) -> Layout:
    """Layout of K noise samples of H rows each that follow a prefix, (B, K * H).

    Positions go on after the part that is read, so that training and inference, with or without
    text, put a row at the same place.

    Args:
        prefix: what the rows follow; they belong to the last document of each row.
        reads: bool (B, K), whether a noise sample sees the assistant part.
        horizon: H.
        causal: whether a row sees the earlier rows of its chunk only (EO-1).
    """
    B, K = reads.shape
    after_text = prefix.after(USER, ASSISTANT)  # (B)
    after_user = prefix.after(USER)
    start = torch.where(reads.t(), after_text, after_user).t()  # (B, K)
    row = torch.arange(horizon, device=reads.device).expand(B, K, horizon)
    place = (start[..., None] + row).flatten(1)  # (B, K*H)
    order = torch.full_like(place, LAST)
    if causal:
        order += row.flatten(1)
    noise_sample = torch.arange(K, device=reads.device)[:, None]
    return Layout(
        position=place.expand(3, -1, -1),
        order=order,
        document=prefix.last_document.expand(place.shape),
        noise_sample=noise_sample.expand(B, K, horizon).flatten(1),
        kind=torch.full_like(place, ACTION),
        reads=reads.repeat_interleave(horizon, 1),
    )


def word_layout(document: Tensor, position: Tensor, order: Tensor, done: Tensor) -> Layout:
    """Layout of one decoded word per row, (B, 1).

    Args:
        document: (B, 1), which the words belong to.
        position: (B), rotary positions.
        order: (B).
        done: bool (B); a finished row rides along as padding until all are done.
    """
    place = position[:, None]  # (B, 1)
    kind = torch.where(done, PAD, ASSISTANT)[:, None]
    return Layout(
        position=place.expand(3, -1, -1),
        order=order[:, None],
        document=torch.where(done[:, None], -1, document),
        noise_sample=torch.full_like(place, -1),
        kind=kind,
        reads=torch.ones_like(kind, dtype=torch.bool),
    )


# -----------------------------------------------------------------------------
# other texts for a batch


def user_part(batch: Batch) -> Batch:
    """The batch without its assistant part, which becomes padding: no shape changes."""
    document, _, user = documents(batch)
    if 'document' in batch:
        return dict(batch, document=torch.where(user, document, -1))
    return dict(batch, total_len=batch['user_len'])


def give_text(batch: Batch, texts: list[list[int]]) -> Batch:
    """The batch with these token ids as assistant parts, padded on the right."""
    document, _, user = documents(batch)
    assert document.max() == 0, 'a row of several documents has no one assistant part'
    member = user & (document == 0)
    ids = batch['input_ids']
    users = []
    rows = []
    for row, there, text in zip(ids, member, texts):
        user_ids = row[there]
        users.append(user_ids)
        rows.append(torch.cat([user_ids, ids.new_tensor(text)]))
    batch = {name: value for name, value in batch.items() if name != 'document'}
    return dict(
        batch,
        user_len=torch.tensor([len(row) for row in users], device=ids.device),
        total_len=torch.tensor([len(row) for row in rows], device=ids.device),
        input_ids=nn.utils.rnn.pad_sequence(rows, batch_first=True),
    )
