"""Bits of the table of token embeddings: rounding, codebooks, gradients, exports, ONNX files, the space."""

from __future__ import annotations

import copy
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from samples import sampled
from test_rank import assert_features_explain
from toys import TOYS, context_of, logits, variant
from transformers import AutoModel, AutoModelForMaskedLM

from nas.exports.export import enable_remote_code
from nas.modeling.compressed_table import CompressedEmbedding, compress, nearest, restore
from nas.recipe.schema import Recipe
from nas.studies.block_search import blocks
from nas.supernets.codebook import fit_codebook
from nas.supernets.space import recipe_choices
from nas.supernets.supernet import Supernet
from nas.tasks.vocabulary import Vocabulary
from predictors.costs.analytic import AnalyticCosts
from predictors.measurement.onnx_export import write_onnx
from search_spaces import InputError, Layout, SearchSpace, SubnetConfig
from search_spaces.dimension import Facts
from search_spaces.dimensions.embedding_bits import EMBEDDING_BITS
from search_spaces.module_kinds import CompressedTable
from search_spaces.proposal import propose_choices

PARENT = SubnetConfig.uniform((0, 1, 2), num_attention_heads=4, intermediate_size=16, hidden_size=24)
FORMS = ("16", "8", "4", "pq:12")
SIZE = "objectives={accuracy: maximize, size_mb: minimize}"


def bert(form: str, **values: Any) -> tuple[Supernet, SubnetConfig]:
    """A random BERT and the subnetwork of it with a compressed table."""
    supernet = Supernet(TOYS["bert"].model())
    return supernet, supernet.parent.with_values(embedding_bits=form, **values)


@pytest.mark.parametrize(("bits", "channels"), [(16, 7), (8, 7), (4, 7), (4, 150)])
def test_a_row_is_rounded_to_the_nearest_of_even_steps_and_stored_as_counted(bits: int, channels: int) -> None:
    table = torch.randn(9, channels) * torch.logspace(-2, 2, 9)[:, None]
    table[2] = 0.0
    kind = CompressedTable(bits)
    stored = compress(table, bits, kind.group, None)
    assert {name: (tuple(t.shape), t.element_size()) for name, t in stored.items()} == {
        name: (shape, size) for name, (shape, _, size) in kind.packed(((9, channels), "F32", 4)).items()
    }
    found = restore(channels, kind.group, stored["qweight"], stored.get("scales"), None)
    if bits == 16:
        assert torch.equal(found, table.half().float())
        return
    for group in range(-(-channels // (kind.group or channels))):
        part = slice(group * (kind.group or channels), (group + 1) * (kind.group or channels))
        step = table[:, part].abs().amax(1, keepdim=True) / {8: 127, 4: 7}[bits]
        assert ((found - table)[:, part].abs() <= step * 0.505 + 1e-7).all(), "half a step, and the scale's rounding"
    assert not found[2].any()


def test_a_codebook_is_that_of_k_means_and_the_same_every_time() -> None:
    """Rows that are few vectors with little noise are restored to them; random vectors of the table are far worse."""
    corners = torch.randn(4, 16, 3)
    rows = torch.stack([corners[k, torch.randint(16, (2000,))] for k in range(4)], 1)
    table = (rows + 0.01 * torch.randn_like(rows)).flatten(1)
    codebook = fit_codebook(table, 3, 64)
    assert codebook.shape == (4, 64, 3) and torch.equal(codebook, fit_codebook(table, 3, 64))

    def error(book: torch.Tensor) -> float:
        codes = nearest(table, book)
        distances = torch.stack([torch.cdist(table[:, 3 * k : 3 * k + 3], book[k]) for k in range(4)], 1)
        assert torch.equal(codes, distances.argmin(-1))
        return float((restore(12, 0, codes.to(torch.uint8), None, book) - table).square().mean())

    drawn = table[:64].unflatten(1, (4, 3)).transpose(0, 1)
    assert error(codebook) < 0.0002 and error(codebook) < 0.8 * error(drawn)


@pytest.mark.parametrize("form", FORMS)
def test_a_table_computes_what_the_parent_does_with_its_restored_rows(form: str) -> None:
    supernet, subnet = bert(form)
    parent, inputs = copy.deepcopy(supernet.model), TOYS["bert"].inputs()
    before = logits(parent, inputs)
    supernet.activate(subnet)
    rows = supernet.embedding(torch.arange(20)).detach()  # type: ignore[misc]
    reference = TOYS["bert"].model()
    reference.load_state_dict(parent.state_dict())
    assert not torch.equal(rows, reference.get_input_embeddings().weight)
    reference.get_input_embeddings().weight.data = rows
    assert torch.allclose(logits(supernet.model, inputs), logits(reference, inputs), atol=1e-5)
    assert not torch.allclose(logits(supernet.model, inputs), before, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_pass_the_rounding(form: str) -> None:
    supernet, subnet = bert(form)
    batch = TOYS["bert"].labelled()
    supernet.activate(subnet)
    loss = supernet.model(**batch).loss
    loss.backward()
    with torch.no_grad():
        assert torch.allclose(supernet.model(**batch).loss, loss, atol=1e-5)
    gradient = supernet.model.get_parameter("bert.embeddings.word_embeddings.weight").grad
    seen = torch.zeros(20, dtype=torch.bool).index_fill(0, batch["input_ids"].unique()[1:], True)
    assert gradient is not None and gradient[seen].abs().sum(1).min() > 0 and not gradient[~seen].any()


def test_a_narrower_row_has_the_first_codes_of_a_wider_one() -> None:
    supernet, subnet = bert("pq:12")
    wide = supernet.state_dict(subnet)
    narrow = supernet.state_dict(subnet.with_values(hidden_size=26))
    start = "bert.embeddings.word_embeddings."
    codes, book = narrow[f"{start}qweight"], narrow[f"{start}codebook"]
    assert codes.shape == (20, 7) and torch.equal(codes[:, :6], wide[f"{start}qweight"][:, :6])
    assert torch.equal(book[:6], wide[f"{start}codebook"][:6]) and not book[6, :, 2:].any()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", ["bert", "gemma3_text"])
def test_an_export_reloads_bare_and_with_another_head_and_cannot_be_resized(
    family: str, form: str, tmp_path: Path
) -> None:
    supernet = Supernet(TOYS[family].model("text-classification"))
    model, inputs = supernet.extract(supernet.parent.with_values(embedding_bits=form)), TOYS[family].inputs()
    table = model.get_input_embeddings()
    assert isinstance(table, CompressedEmbedding) and not isinstance(table.weight, torch.nn.Parameter)
    enable_remote_code(model, "AutoModelForSequenceClassification")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "compressed_table.py").is_file()
    with torch.inference_mode():
        expected = model.base_model(**inputs).last_hidden_state
        assert torch.equal(AutoModel.from_pretrained(tmp_path, trust_remote_code=True)(**inputs)[0], expected)
        half = AutoModel.from_pretrained(tmp_path, trust_remote_code=True, dtype=torch.bfloat16)
        assert (
            half(**inputs)[0].dtype == torch.bfloat16
            and half.get_input_embeddings().qweight.dtype == table.qweight.dtype
        )
        if family == "bert":
            assert (
                AutoModelForMaskedLM.from_pretrained(tmp_path, trust_remote_code=True)(**inputs).logits.shape[-1] == 20
            )
    with pytest.raises(ValueError, match="cannot be resized"):
        model.resize_token_embeddings(30)


@pytest.mark.parametrize("form", sampled(FORMS, lambda form: form in ("4", "pq:12")))
def test_an_onnx_file_stores_the_codes(form: str, tmp_path: Path) -> None:
    import onnx

    supernet = Supernet(variant("bert", num_hidden_layers=1).model())
    subnet = supernet.parent.with_values(embedding_bits=form, hidden_size=36)
    difference = write_onnx(supernet.extract(subnet), TOYS["bert"].inputs(), tmp_path / "model.onnx")
    weights = onnx.load(tmp_path / "model.onnx").graph.initializer
    stored = next(w for w in weights if "word_embeddings.qweight" in w.name)
    bits = {"FLOAT16": "16", "INT8": "8", "UINT8": "4" if "pq" not in form else form}
    assert difference < 1e-5 and bits[onnx.TensorProto.DataType.Name(stored.data_type)] == form
    assert not [w.name for w in weights if w.data_type == onnx.TensorProto.FLOAT and list(w.dims) == [20, 36]]


def test_onnx_runtime_looks_up_rows_of_four_bits_as_they_are(tmp_path: Path) -> None:
    """Whole groups of 64 channels, which the table above has not."""
    import onnx

    supernet = Supernet(variant("bert", hidden_size=128, num_hidden_layers=1).model())
    model = supernet.extract(supernet.parent.with_values(embedding_bits="4"))
    assert write_onnx(model, TOYS["bert"].inputs(), tmp_path / "model.onnx") < 1e-5
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert [node.op_type for node in graph.node].count("GatherBlockQuantized") == 1
    assert [list(w.dims) for w in graph.initializer if "word_embeddings.qweight" in w.name] == [[20, 64]]


def test_costs_of_all_forms_are_counted_at_once() -> None:
    supernet, _ = bert("full")
    forms = [supernet.parent.with_values(embedding_bits=form) for form in ("full", *FORMS)]
    sizes = AnalyticCosts.from_model(supernet.model, supernet.layout).count(["size_mb"], forms)["size_mb"]
    table = [20 * 48 * 4, 20 * 48 * 2, 20 * (48 + 2), 20 * (24 + 2), 20 * 12 + 12 * 10 * 4 * 4]
    assert np.allclose(1e6 * (sizes[0] - sizes), np.array(table[0]) - table, atol=200), "but for the header"


def test_a_codebook_is_that_of_the_rows_that_are_kept() -> None:
    order = np.array([0, 1, 2, 3, 4, *range(19, 4, -1)])
    supernet = Supernet(TOYS["bert"].model(), vocabulary=Vocabulary(order, 5))
    subnet = supernet.parent.with_values(vocabulary=12, embedding_bits="pq:12")
    (codebook,) = (t for name, t in supernet.state_dict(subnet).items() if name.endswith("codebook"))
    rows = supernet.model.get_input_embeddings()._parameters["weight"][np.sort(order[:12])]
    assert torch.equal(codebook, fit_codebook(rows.detach(), 4, codebook.shape[1]))
    assert fit_codebook(rows[:3].detach(), 4, 8).shape == (12, 8, 4), "more vectors than rows"


def test_a_codebook_learns_where_a_model_is_trained_on() -> None:
    supernet, subnet = bert("pq:12")
    model, batch = supernet.extract(subnet), TOYS["bert"].labelled()
    model(**batch).loss.backward()
    table = model.get_input_embeddings()
    assert table.codebook.grad.abs().sum() > 0 and not table.qweight.requires_grad


# -- the space --------------------------------------------------------------------------------------------------------


def test_values_are_numbers_or_names_and_wrong_ones_say_what_to_write(text_recipe: Path) -> None:
    def useful(*overrides: str, **task: str) -> tuple[Any, list[str]]:
        recipe = Recipe.load(text_recipe, ['space.embedding_bits=[full, 8, 4, "pq:6", "pq:12"]', *overrides])
        recipe = recipe.model_copy(update={"task": recipe.task.model_copy(update=task)})
        layout = Supernet(TOYS["bert"].model()).layout
        choices, reasons = recipe_choices(context_of(recipe, layout))
        space = layout.search_space(choices)
        return space.choices["embedding_bits"], reasons

    assert useful(SIZE) == (("pq:6", "pq:12", "4", "8", "full"), [])
    kept, reasons = useful()
    assert kept == ("full",) and reasons[0].startswith(
        "embedding_bits 8, 4, pq:6, pq:12 dropped: it only reduces size_mb"
    )
    assert "shares the table" in useful(SIZE, type="fill-mask")[1][0]
    with pytest.raises(InputError, match=r"must be `full`, 16, 8, 4 or `pq:N`.* but got `5`"):
        useful(SIZE, "space.embedding_bits=[5]")
    with pytest.raises(InputError, match=r"must divide the 48 channels .* but got `pq:7`; take a divisor of 48"):
        useful(SIZE, "space.embedding_bits=['pq:7']")


def test_a_table_that_cannot_be_replaced_says_why() -> None:
    supernet = Supernet(TOYS["bert"].model("fill-mask"))
    with pytest.raises(InputError, match="shares the embedding table"):
        supernet.activate(supernet.parent.with_values(embedding_bits="8"))
    shared = Supernet(TOYS["t5"].model())
    with pytest.raises(InputError, match="cannot be compressed"):
        shared.activate(shared.parent.with_values(embedding_bits="8"))


def test_it_is_one_choice_of_the_subnetwork_and_older_keys_stay() -> None:
    assert "embedding_bits" not in PARENT.to_dict() and "embedding" not in str(PARENT)
    low = PARENT.with_values(embedding_bits=8)
    assert low.embedding_bits == "8" and "embedding bits 8" in str(low) and low.key != PARENT.key
    assert SubnetConfig.from_dict(low.to_dict()) == low
    for text in ("pq:6", "4", "8", "16", "full"):
        assert EMBEDDING_BITS.decode(EMBEDDING_BITS.encode(text)) == text
    without = SearchSpace(PARENT, num_hidden_layers=[1, 2, 3], intermediate_size=[8, 16])
    space = SearchSpace(**{**without.arguments(), "embedding_bits": ["full", 8, "pq:6"]})
    assert space.size == 3 * without.size and space.parameters["embedding_bits"] == ("pq:6", "8", "full")
    assert {space.sample(Random(k)).embedding_bits for k in range(40)} == {"pq:6", "8", "full"}
    assert space.smallest.embedding_bits == "pq:6" and space.largest == without.largest
    assert space.parameters.to_subnet(space.parameters.from_subnet(space.smallest)) == space.smallest
    assert all(subnet.embedding_bits == "full" for subnet in space.uniform_scalings())
    last = space.parameters.encode([space.smallest, space.largest])[:, -1]
    assert last.tolist() == [pytest.approx(1 / 3), 1.0]
    found = [block.subnet for block in blocks(space) if block.layer == "embedding_bits"]
    assert found == [PARENT.with_values(embedding_bits=bits) for bits in ("pq:6", "8", "full")]


def test_latency_features_tell_what_a_table_costs() -> None:
    choices: dict[str, Any] = {"intermediate_size": [4, 8, 16], "embedding_bits": ["pq:6", "8", "full"]}
    space = SearchSpace(PARENT, num_hidden_layers=[1, 2, 3], **choices)
    subnets = [space.sample(Random(k)) for k in range(300)]
    extra = {"pq:6": 0.5, "8": 0.2, "full": 0.0}
    law = np.array([1 + len(subnet.layers) + extra[subnet.embedding_bits] for subnet in subnets])
    assert_features_explain(space, subnets, law)


def test_a_large_table_is_proposed_to_be_smaller() -> None:
    def proposed(vocabulary: int) -> Any:
        config = copy.deepcopy(TOYS["bert"].model().config)
        config.vocab_size = vocabulary
        proposal = propose_choices(Layout(config), Facts(tokens=16, value_names=frozenset({"size_mb"})))
        return proposal.choices.get("embedding_bits") or proposal.left_out["embedding_bits"]

    assert proposed(1000) == [4, 8, "full"] and "of the weights" in proposed(20)
