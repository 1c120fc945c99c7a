"""A draft that proposes some tokens only: which ones, what they compute, what stays as it was, what is refused."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_borrowing_draft import save_draft

from gammatune.config import Checkpoint, PairConfig
from gammatune.errors import UserError
from gammatune.models import draft_vocabulary, load
from gammatune.models.pair import load_pair, random_pair, reduce_draft
from gammatune.models.sources import DRAFT_FOLDER
from gammatune.models.tiny import tiny_shape
from gammatune.runtimes.base import build_models

VOCAB = 259
TEXT = torch.arange(20)[None]


@pytest.fixture
def ranked(tmp_path):
    """ranked(ids, name) -> path of a ranking file."""

    def write(ids, name="ranking.npy"):
        np.save(tmp_path / name, np.array(ids))
        return str(tmp_path / name)

    return write


@pytest.fixture
def borrowing(make_checkpoint, tmp_path):
    """The config of a draft that borrows its target's tables."""
    save_draft(tmp_path / "draft")
    return PairConfig(
        name="local",
        target=Checkpoint(id="t", path=str(make_checkpoint("target", tie_word_embeddings=True))),
        draft=Checkpoint(path=str(tmp_path / "draft"), borrows_tables=True),
    )


@pytest.fixture
def separate(make_checkpoint, make_pair_config):
    """The config of two whole checkpoints, the draft's two tables tied or not."""

    def make(tied):
        draft = make_checkpoint(f"draft-{tied}", seed=1, num_hidden_layers=1, tie_word_embeddings=tied)
        return make_pair_config(make_checkpoint("target"), draft)

    return make


def with_vocabulary(config, size, ranking=None):
    return replace(config, draft=replace(config.draft, vocabulary=size, ranking=ranking))


def check_reduction(config, ranking):
    whole, reduced = load_pair(config), load_pair(with_vocabulary(config, 40, ranking))
    assert reduced.draft_ids.dtype == torch.int64 and 2 in reduced.draft_ids
    with torch.inference_mode():
        expected = whole.draft(TEXT).logits[..., reduced.draft_ids]
        torch.testing.assert_close(reduced.draft(TEXT).logits, expected)
        assert torch.equal(reduced.target(TEXT).logits, whole.target(TEXT).logits)
    assert reduced.draft.get_input_embeddings().weight.shape[0] == VOCAB
    assert not any(p.requires_grad for p in reduced.draft.parameters()) and not reduced.draft.training
    return whole, reduced


@pytest.mark.parametrize("tied", [True, False])
def test_a_reduced_lm_head_computes_its_rows(separate, ranked, tied):
    check_reduction(separate(tied), ranked(np.arange(VOCAB)[::-1]))


def test_borrowed_tables_stay_the_targets_own(borrowing, ranked):
    pair = check_reduction(borrowing, ranked(np.arange(VOCAB)[::-1]))[1]
    assert pair.draft.get_input_embeddings().weight.data_ptr() == pair.target.get_input_embeddings().weight.data_ptr()
    assert pair.target.lm_head.weight.data_ptr() == pair.target.get_input_embeddings().weight.data_ptr()


def test_the_ranking_lies_in_the_drafts_folder(borrowing, tmp_path):
    np.save(tmp_path / "draft" / draft_vocabulary.RANKING_FILE, np.arange(VOCAB, dtype=np.int32)[::-1])
    pair = load_pair(with_vocabulary(borrowing, 5))
    assert pair.draft_ids.tolist() == [2, 255, 256, 257, 258]


def test_the_given_pair_is_not_changed():
    pair = random_pair(vocab_size=40)
    reduced = reduce_draft(pair, 7, draft_vocabulary.draw_ranking(40))
    assert pair.draft.lm_head.weight.shape[0] == 40 and pair.draft_ids is None
    assert reduced.draft.lm_head.weight.shape[0] == 7 == len(reduced.draft_ids)
    assert reduced.draft.model.layers[0].mlp.up_proj.weight is pair.draft.model.layers[0].mlp.up_proj.weight


def test_identity_tells_vocabularies_apart_and_a_whole_one_has_the_one_it_had(borrowing, ranked):
    rising, falling = ranked(np.arange(VOCAB), "rising.npy"), ranked(np.arange(VOCAB)[::-1], "falling.npy")
    whole = load_pair(borrowing).identity
    assert set(whole) == {"target", "draft"} and whole == load_pair(with_vocabulary(borrowing, None, rising)).identity
    reduced = [
        load_pair(with_vocabulary(borrowing, *chosen)).identity for chosen in ((9, rising), (10, rising), (9, falling))
    ]
    assert all(identity.items() > whole.items() for identity in reduced)
    assert len({identity["draft_vocabulary"]["ids_sha256"] for identity in reduced}) == 3


def test_weights_made_on_the_spot_need_no_ranking(ranked):
    shape = tiny_shape(1, vocab_size=300)
    for fields in ({"source": "tiny-random"}, {"weights": "random"}):
        config = PairConfig(name="x", target=Checkpoint("t", shape=shape), draft=Checkpoint("d", shape=shape), **fields)
        pair = load_pair(with_vocabulary(config, 20), dtype="bf16")
        assert len(pair.draft_ids) == 20 and 1 in pair.draft_ids and pair.draft.lm_head.weight.dtype == torch.bfloat16
        assert load_pair(with_vocabulary(config, 3, ranked([7, 8, 9]))).draft_ids.tolist() == [1, 7, 8]
        with pytest.raises(UserError, match="vocabulary=301 is more than the 300 tokens"):
            load_pair(with_vocabulary(config, 301))


@pytest.mark.parametrize("name", ["eager", "compiled"])
def test_a_runtime_gives_the_logits_of_the_rows(name):
    pair = random_pair(seed=1, vocab_size=40, vocabulary=7)
    models, tokens = build_models(pair, name), torch.tensor([5, 6, 7])
    logits = models.draft.forward(tokens, keep=2)
    assert logits.shape == (2, 7) and models.draft.vocab_size == 7
    with torch.inference_mode():
        whole = random_pair(seed=1, vocab_size=40).draft(tokens[None]).logits[0, -2:, pair.draft_ids]
    torch.testing.assert_close(logits, whole, rtol=1e-4, atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_rows_are_the_ends_and_the_most_frequent(data):
    ranking = np.array(data.draw(st.permutations(range(30))))[: data.draw(st.integers(1, 30))]
    ends = tuple(data.draw(st.lists(st.integers(0, 29), max_size=3)))
    size = data.draw(st.integers(max(1, len(set(ends))), 30))
    if size > len(ranking):
        with pytest.raises(UserError, match="is more than"):
            draft_vocabulary.choose_ids(ranking, size, ends)
        return
    rows = draft_vocabulary.choose_ids(ranking, size, ends).tolist()
    assert len(rows) == size and rows == sorted(set(rows)) and set(rows) >= set(ends)
    others = [token for token in ranking.tolist() if token not in ends]
    assert set(rows) - set(ends) == set(others[: size - len(set(ends))])


def test_more_ends_than_rows_are_refused():
    with pytest.raises(UserError, match="vocabulary=1 is less than the 2 tokens that end an answer"):
        draft_vocabulary.choose_ids(np.arange(9), 1, (3, 5, 3))


def pickled() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}], dtype=object), allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is no readable .npy file"),
        (b"1 2 3", "is no readable .npy file"),
        (pickled(), "is no readable .npy file"),
        (np.arange(12).reshape(3, 4), "something else than one list of whole numbers"),
        (np.arange(12.0), "something else than one list of whole numbers"),
        (np.arange(-1, 12), "holds ids from -1 to 11, but the pair's tokens are 0 to 258"),
        (np.arange(300), "holds ids from 0 to 299, but the pair's tokens are 0 to 258"),
        (np.array([1, 2, 3, 1, 4, 5]), "names some tokens twice"),
        (np.arange(4), "vocabulary=5 is more than the 4 tokens of its ranking"),
        (np.arange(0), "vocabulary=5 is more than the 0 tokens of its ranking"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_unusable_ranking_is_refused_before_weights(borrowing, tmp_path, monkeypatch, content, words):
    monkeypatch.setattr(load, "load_model", lambda *_: pytest.fail("weights were read before the refusal"))
    path = tmp_path / "odd.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    with pytest.raises(UserError, match=words) as caught:
        load_pair(with_vocabulary(borrowing, 5, str(path)))
    assert "\n" not in str(caught.value)


def test_a_ranking_that_is_not_there_is_refused(borrowing):
    with pytest.raises(
        UserError,
        match=r"ranking=/none.npy is no file: make one with `python scripts/rank_tokens.py",
    ):
        load_pair(with_vocabulary(borrowing, 5, "/none.npy"))
    with pytest.raises(
        UserError, match=r"vocabulary=5 needs to know which tokens are frequent, and .*token_ranking.npy is not"
    ):
        load_pair(with_vocabulary(borrowing, 5))


def test_the_shipped_ranking_orders_all_tokens_of_the_shipped_draft():
    ranking = draft_vocabulary.read_ranking(DRAFT_FOLDER / draft_vocabulary.RANKING_FILE, 49152)
    assert sorted(ranking) == list(range(49152))
