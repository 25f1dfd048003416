"""Feature dashboards against a whole N × M table of codes, and what a page makes of hostile text."""

import json
import re
from base64 import b64encode
from collections import Counter
from hashlib import sha256
from importlib.resources import files

import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup
from lm_fixtures import D_MODEL, VOCABULARY, language_model, text_corpus, tokenizer
from rounding import bar_between
from safetensors.torch import load_file, save_file

from sae_lib import dashboards, storage
from sae_lib.activations import harvest
from sae_lib.corpora import Corpus, Document
from sae_lib.dashboards import Dashboards, passes
from sae_lib.dashboards.page import _inert
from sae_lib.dashboards.running_top import RunningTop, priorities
from sae_lib.dashboards.tokens import texts, visible
from sae_lib.interventions import logit_weights
from sae_lib.sae import SparseAutoencoder

torch.set_num_threads(1)
SITE, BLOCK, WIDTH = "resid_post.1", 16, 48
# from the third token on: after two letters some rows would be equal, and rounding decide which comes first
SMALL = {"n_tokens": 1000, "block_size": BLOCK, "batch_blocks": 3, "shard_rows": 200, "skip_first": 2}
HOSTILE = "</script><img src=x onerror=alert(1)> <!-- \"'&\u202e\u200bé–\t\n"


@pytest.fixture(scope="module")
def lm():
    return language_model()


@pytest.fixture(scope="module")
def store(lm, tmp_path_factory):
    return harvest(lm, text_corpus(), SITE, tmp_path_factory.mktemp("store"), **SMALL)


def autoencoder(store, activation="relu"):
    """Untied, scaled, one output scale below 0; latent 0 never fires, latent 1 on three rows.

    In float64, so that batches of another size, whose sums have other last bits, order the rows alike.
    """
    k = 5 if activation == "topk" else None
    sae = SparseAutoencoder(
        D_MODEL, WIDTH, tied=False, activation=activation, k=k, normalisation=store.normalisation, seed=4
    ).double()
    sae.scale.data = torch.linspace(0.5, 2, WIDTH, dtype=torch.float64)
    sae.scale.data[7] *= -1
    rows = store.rows(range(store.n_rows)).double()
    sae.pre_bias.data = store.normalisation.apply(rows).mean(dim=0)
    projection = sae.project(rows)
    sae.bias.data = -torch.tensor([bar_between(u, 0.1) for u in projection.T], dtype=torch.float64)
    sae.bias.data[0] = -1e4
    top = projection[:, 1].sort(descending=True).values
    sae.bias.data[1] = -(top[2] + top[3]) / 2
    if sae.threshold is not None:
        sae.threshold.data.fill_(0.01)
    return sae.requires_grad_(False)


def table(sae, store):
    """All activations (N, M), float64."""
    rows = store.rows(range(store.n_rows))
    return (sae.encode(rows.double()) * sae.scale.abs()).numpy()


def everything(store):
    """Of each row: its block, its position there, and the blocks (B, T) themselves."""
    tensors = [store._shard(i) for i in range(len(store.manifest.shards))]
    blocks = torch.cat([t["blocks"] for t in tensors]).numpy()
    starts = np.cumsum([0, *(len(t["blocks"]) for t in tensors)])[:-1]
    places = np.concatenate([t["places"].numpy() + s * BLOCK for t, s in zip(tensors, starts, strict=True)])
    return blocks, places // BLOCK, places % BLOCK


@pytest.mark.parametrize("activation", ["relu", "jumprelu", "threshold", "topk"])
def test_measured_is_what_the_whole_table_says(lm, store, activation, monkeypatch):
    # batches of 7 rows: they cut through blocks and shards
    monkeypatch.setattr(passes, "_CODES", 7 * WIDTH)
    sae = autoencoder(store, activation)
    board = dashboards.measure(sae, lm, store, n_top=4, before=5, after=3)
    z = table(sae, store)
    blocks, block, position = everything(store)
    row_at = {place: row for row, place in enumerate(zip(block.tolist(), position.tolist(), strict=True))}
    assert board.n_alive == (z > 0).any(axis=0).sum()
    assert (len(board), board.width, board.n_rows) == (WIDTH, WIDTH, store.n_rows)
    for m, latent in enumerate(board):
        fired = np.flatnonzero(z[:, m])
        assert (latent.number, latent.firings) == (m, len(fired))
        assert latent.firing_rate == len(fired) / store.n_rows
        if not len(fired):
            assert (latent.peak, latent.mean, latent.purity, latent.token) == (0, 0, None, None)
            assert latent.top == latent.lower == latent.together == ()
            continue
        assert latent.peak == pytest.approx(z[:, m].max(), rel=1e-5)
        assert latent.mean == pytest.approx(z[fired, m].mean(), rel=1e-5)
        counts, _ = np.histogram(z[fired, m], bins=20, range=(0, z[:, m].max()))
        # a code on the edge of a bin may fall to either side by rounding
        assert np.abs(np.cumsum(latent.histogram) - np.cumsum(counts)).max() <= 1
        best = []
        for row in sorted(fired, key=lambda r: (-z[r, m], r)):
            if block[row] not in {block[b] for b in best}:
                best.append(row)
        assert [c.row for c in latent.top] == best[:4]
        for context in (*latent.top, *latent.lower):
            b, p = block[context.row], position[context.row]
            first = max(0, p - 5)
            assert list(context.tokens) == blocks[b, first : p + 4].tolist()
            assert context.position == p - first
            for place, value in enumerate(context.activations, start=first):
                row = row_at.get((b, place))
                if row is None:
                    assert value is None
                else:
                    assert value == pytest.approx(z[row, m], rel=1e-4, abs=1e-5)
            assert context.activation > 0


def test_lower_contexts_and_purity_come_from_all_firings_while_they_are_few(lm, store):
    sae = autoencoder(store)
    z = table(sae, store)
    board = dashboards.measure(sae, lm, store, n_top=2)
    blocks, block, position = everything(store)
    few = [m for m in range(WIDTH) if 0 < (z[:, m] > 0).sum() <= passes.SAMPLE]
    assert 1 in few
    for m in few:
        fired = np.flatnonzero(z[:, m])
        values = np.sort(z[fired, m])
        counts = Counter(blocks[block[fired], position[fired]].tolist())
        assert board[m].purity == max(counts.values()) / len(fired)
        assert counts[board[m].token] == max(counts.values())
        shown = {c.quantile: c.activation for c in board[m].lower}
        tops = [c.activation for c in board[m].top]
        for q in (0.75, 0.5, 0.25):
            expected = values[int(np.ceil(q * len(values))) - 1]
            assert shown.get(q, expected) == pytest.approx(expected, rel=1e-5)
            # missing only where it is shown already
            assert q in shown or any(v == pytest.approx(expected, rel=1e-5) for v in [*tops, *shown.values()])
    # of many firings, 64 at random: near the true quantiles
    many = max(range(WIDTH), key=lambda m: (z[:, m] > 0).sum())
    values = np.sort(z[z[:, many] > 0, many])
    for context in board[many].lower:
        rank = np.searchsorted(values, context.activation) / len(values)
        assert abs(rank - context.quantile) < 0.2


def test_weights_neighbours_and_firing_together(lm, store):
    sae = autoencoder(store)
    z = table(sae, store)
    board = dashboards.measure(sae, lm, store, [7, 3], n_tokens=4, n_neighbours=3)
    signs = torch.where(sae.scale < 0, -1.0, 1.0)
    for latent, m in zip(board, (7, 3), strict=True):
        weights = (signs[m] * logit_weights(lm, sae, [m])[0]).numpy()
        for pairs, order in ((latent.promoted, np.argsort(-weights)), (latent.demoted, np.argsort(weights))):
            assert [token for token, _ in pairs] == order[:4].tolist()
            assert [score for _, score in pairs] == pytest.approx(weights[order[:4]].tolist(), rel=1e-4)
        cosines = torch.cosine_similarity(signs[:, None] * sae.decoder_rows, signs[m] * sae.decoder_rows[m])
        cosines[m] = -2
        assert [n for n, _ in latent.nearest] == cosines.topk(3).indices.tolist()
        fires = z > 0
        together = (fires & fires[:, [m]]).sum(axis=0)
        alive = np.flatnonzero((together >= 3) & (np.arange(WIDTH) != m))
        phi = {j: np.corrcoef(fires[:, j], fires[:, m])[0, 1] for j in alive}
        for number, value in latent.together:
            assert value == pytest.approx(phi[number])
        assert [v for _, v in latent.together] == pytest.approx(sorted(phi.values())[::-1][:3])


def test_equal_activations_show_the_first_rows(lm, store):
    """A latent that reads nothing but its bias fires everywhere, equally."""
    sae = autoencoder(store)
    sae.weight[2], sae.bias[2] = 0.0, 1.0
    board = dashboards.measure(sae, lm, store, [2], n_top=3)
    _, block, _ = everything(store)
    assert [c.row for c in board[2].top] == [int(np.flatnonzero(block == b)[0]) for b in range(3)]
    assert board[2].histogram == (0,) * 19 + (store.n_rows,)


def test_a_subset_says_the_same_as_all_and_a_draw_is_reproducible(lm, store):
    sae = autoencoder(store)
    whole = dashboards.measure(sae, lm, store)
    part = dashboards.measure(sae, lm, store, torch.tensor([9, 1, 9]))
    assert [latent.number for latent in part] == [9, 1]
    assert all(part[m].top == whole[m].top and part[m].lower == whole[m].lower for m in (9, 1))
    drawn = dashboards.measure(sae, lm, store, 5, seed=3)
    assert len(drawn) == 5
    assert all(latent.firings for latent in drawn)
    assert drawn == dashboards.measure(sae, lm, store, 5, seed=3)
    assert drawn.chosen == f"5 drawn at random (seed 3) from the {drawn.n_alive} that fire"
    with pytest.raises(KeyError, match="latent 0 was not measured"):
        part[0]


def test_an_autoencoder_of_another_program_reads_raw_rows(lm, store, tmp_path):
    """Without our metadata, and without a normalisation: as SAELens writes them."""
    ours = SparseAutoencoder(D_MODEL, WIDTH, activation="relu", tied=False)
    ours.save(tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    del config["metadata"]["sae_lib"]
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    weights = load_file(tmp_path / "sae_weights.safetensors")
    save_file(weights, tmp_path / "sae_weights.safetensors")
    foreign = storage.load(tmp_path)
    assert "training" not in foreign.metadata
    board = dashboards.measure(foreign, lm, store)
    z = torch.relu(store.rows(range(store.n_rows)) @ weights["W_enc"]).numpy()
    assert [latent.firings for latent in board] == (z > 0).sum(axis=0).tolist()
    assert [latent.peak for latent in board] == pytest.approx(z.max(axis=0).tolist(), rel=1e-4)


def test_running_top_keeps_what_a_sort_of_everything_keeps():
    draw = np.random.default_rng(0)
    n, size, k = 5, 4000, 6
    latents, scores = draw.integers(0, n, size), draw.integers(0, 40, size) / 8
    rows, groups = np.arange(size), np.arange(size) // 60
    kept = RunningTop(n, k)
    for cut in np.split(np.arange(size), [1, 2, 700, 701, 2500]):
        kept.offer(latents[cut], rows[cut], scores[cut], -scores[cut], groups[cut])
    for latent in range(n):
        best = {}
        for row in sorted(np.flatnonzero(latents == latent), key=lambda r: (-scores[r], r)):
            best.setdefault(groups[row], row)
        expected = list(best.values())[:k]
        assert kept.rows[latent].tolist() == expected
        assert kept.values[latent].tolist() == (-scores[expected]).tolist()


def test_priorities_look_uniform_and_independent():
    latents, rows = (a.ravel() for a in np.meshgrid(np.arange(300), np.arange(1000)))
    first, second = priorities(latents, rows, 0), priorities(latents, rows, 1)
    counts, _ = np.histogram(first, bins=20, range=(0, 1))
    # a standard deviation of the counts is 119
    assert np.abs(counts - 15_000).max() < 600
    assert len(np.unique(first)) == len(first)
    table = first.reshape(1000, 300)
    for other in (second.reshape(1000, 300), np.roll(table, 1, axis=0), np.roll(table, 1, axis=1)):
        assert abs(np.corrcoef(table.ravel(), other.ravel())[0, 1]) < 0.01


# ---- what does not belong together


def test_mistakes_are_refused_with_what_to_do(lm, store, tmp_path):
    sae = autoencoder(store)
    with pytest.raises(ValueError, match=rf"latent {WIDTH} of {WIDTH}: allowed 0\.\.{WIDTH - 1}"):
        dashboards.measure(sae, lm, store, [WIDTH])
    with pytest.raises(ValueError, match="expected whole numbers"):
        dashboards.measure(sae, lm, store, [0.5])
    with pytest.raises(ValueError, match="0 latents asked for"):
        dashboards.measure(sae, lm, store, 0)
    with pytest.raises(ValueError, match="the largest first"):
        dashboards.measure(sae, lm, store, quantiles=(0.1, 0.5))
    with pytest.raises(ValueError, match=r"d_in 16, the rows of .* 32"):
        dashboards.measure(SparseAutoencoder(16, 4), lm, store)
    elsewhere = autoencoder(store)
    elsewhere.metadata = {"training": {"data": {"site": "mlp_out.2"}}}
    with pytest.raises(ValueError, match=r"trained at mlp_out\.2, the rows of .* from resid_post\.1"):
        dashboards.measure(elsewhere, lm, store)
    with pytest.raises(ValueError, match=r"this is tiny-llama, fingerprint .*: other weights"):
        dashboards.measure(sae, language_model(seed=1), store)
    other = language_model()
    other.tokenizer = tokenizer()
    other.tokenizer.add_tokens(["several"])
    with pytest.raises(ValueError, match="another vocabulary"):
        dashboards.measure(sae, other, store)
    negative = SparseAutoencoder(D_MODEL, WIDTH, normalisation=store.normalisation)
    negative.bias.data.fill_(1.0)
    with pytest.raises(ValueError, match="below 0"):
        dashboards.measure(negative, lm, store)
    with pytest.raises(ValueError, match="seed is -1"):
        dashboards.html(dashboards.measure(sae, lm, store, [1]), tmp_path / "page.html", seed=-1)


# ---- text


def test_tokens_show_every_character():
    read = texts(tokenizer(), range(VOCABULARY))
    ids = tokenizer()("–é", add_special_tokens=False).input_ids
    assert [read[i] for i in ids] == ["⟨E2⟩", "⟨80⟩", "⟨93⟩", "⟨C3⟩", "⟨A9⟩"]
    assert read[256] == "<|endoftext|>"
    assert read[VOCABULARY - 1] == f"⟨id {VOCABULARY - 1}⟩"
    assert {read[i] for i in tokenizer()(" a\n", add_special_tokens=False).input_ids} == {" ", "a", "\n"}
    assert visible("a\tb\r\n\u202e\u200b\x00 é") == "a⇥b␍↵⟨U+202E⟩⟨U+200B⟩⟨U+0000⟩ é"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Dashboards, and their page, on text that tries to break out of it."""
    lm = language_model()
    corpus = Corpus("</footer><script>1</script>", '"><b>none', (Document("a", HOSTILE * 20),))
    options = {**SMALL, "n_tokens": 400, "block_size": 64}
    folder = tmp_path_factory.mktemp("hostile")
    store = harvest(lm, corpus, SITE, folder / "store", **options)
    sae = SparseAutoencoder(D_MODEL, 8, activation="relu", normalisation=store.normalisation)
    board = dashboards.measure(sae, lm, store, name="<i>name</i>", before=40, after=20)
    dashboards.html(board, folder / "page.html")
    return board, (folder / "page.html").read_text(encoding="utf-8")


def test_hostile_text_stays_text(hostile):
    board, page = hostile
    soup = BeautifulSoup(page, "html.parser")
    assert [s.get("type") for s in soup.find_all("script")] == ["application/json", None]
    assert soup.find_all(["img", "i", "b", "iframe", "object", "link"]) == []
    data = json.loads(soup.find(id="data").string)
    row = data["latents"][board.latents[0].number]
    shown = "".join(data["tokens"][token] for token in row[7][0][1])
    assert "<" in shown
    assert "⟨E2⟩" in "".join(data["tokens"])
    assert not re.search("[<>&\u202e\u200b]", soup.find(id="data").string)
    assert soup.find("footer").get_text() == (
        'Text of the contexts: </footer><script>1</script>. Licence: "><b>none.'
    )
    for piece in (dashboards.fragment(board), dashboards.side_by_side({"<u>": board}, [])):
        assert {tag.name for tag in BeautifulSoup(piece, "html.parser").find_all()} <= {
            "div", "strong", "p", "span", "code", "br", "hr",
        }  # fmt: skip
    assert _inert({"a": "</script>&"}) == '{"a":"\\u003c/script\\u003e\\u0026"}'


def test_the_page_asks_for_nothing_outside_and_runs_its_own_script_alone(hostile):
    _, page = hostile
    soup = BeautifulSoup(page, "html.parser")
    assert soup.find_all(src=True) == soup.find_all(href=True) == soup.find_all(style=True) == []
    script = soup.find_all("script")[1].string
    style = soup.find("style").string
    assert not re.search(
        r"fetch|XMLHttp|WebSocket|import|innerHTML|insertAdjacent|document\.write|eval", script
    )
    assert "url(" not in style
    assert "@import" not in style
    policy = soup.find("meta", attrs={"http-equiv": "Content-Security-Policy"})["content"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    # the hashes are those of the very text between the tags
    for text in (script, style):
        assert b64encode(sha256(text.encode()).digest()).decode() in policy
    # every control has a name
    for control in soup.find_all(["input", "select"]):
        assert control.find_parent("label").get_text(strip=True)
    assert [h.name for h in soup.find_all(["h1", "h2"])] == ["h1"]


def luminance(colour):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in colour)]
    return np.dot([0.2126, 0.7152, 0.0722], linear)


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_enough_in_light_and_dark():
    style = files("sae_lib.dashboards").joinpath("page.css").read_text()
    for theme in re.findall(r":root \{(.*?)\}", style, re.DOTALL):
        colours = dict(re.findall(r"--(\w+): ([^;]+);", theme))

        def rgb(name, colours=colours):
            text = colours[name].lstrip("#")
            if " " in text:
                return [int(v) for v in text.split()]
            text = "".join(2 * c for c in text) if len(text) == 3 else text
            return [int(text[i : i + 2], 16) for i in (0, 2, 4)]

        for ground in ("paper", "card"):
            for name in ("ink", "soft", "link"):
                assert contrast(rgb(name), rgb(ground)) >= 4.5, (name, ground)
        assert contrast(rgb("ink"), rgb("hot")) >= 4.5
    assert (
        contrast([17, 17, 17], [int(dashboards.fragments.shade(1)[i : i + 2], 16) for i in (1, 3, 5)]) > 4.5
    )


# ---- data, pages, figures


def test_json_round_trip_and_files(lm, store, tmp_path):
    board = dashboards.measure(autoencoder(store), lm, store, [0, 1, 5])
    assert Dashboards.from_dict(json.loads(json.dumps(board.to_dict()))) == board
    board.save(tmp_path / "board.json")
    assert Dashboards.load(tmp_path / "board.json") == board
    (tmp_path / "board.json").write_text('{"format": "other"}')
    with pytest.raises(ValueError, match=r"board\.json: no dashboards: format is 'other'"):
        Dashboards.load(tmp_path / "board.json")
    damaged = board.to_dict()
    del damaged["latents"][0]["peak"]
    with pytest.raises(ValueError, match="damaged"):
        Dashboards.from_dict(damaged)


def test_an_interrupted_page_leaves_the_old_one(hostile, tmp_path, monkeypatch):
    board, _ = hostile
    path = tmp_path / "page.html"
    path.write_text("old")

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("sae_lib.files.atomic.os.replace", stop)
    with pytest.raises(KeyboardInterrupt):
        dashboards.html(board, path)
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]
    assert path.read_text() == "old"


def test_counterparts_are_the_nearest_by_signed_cosine(store):
    first, second = autoencoder(store), autoencoder(store)
    order = torch.randperm(WIDTH, generator=torch.Generator().manual_seed(0))
    second.decoder.data, second.scale.data = first.decoder[order], first.scale[order]
    second.decoder.data[order == 7] *= -1
    second.scale.data[order == 7] *= -1
    rows = dashboards.match({"a": first, "b": second}, [3, 7, 20])
    for row, number in zip(rows, (3, 7, 20), strict=True):
        assert row["a"] == (number, 1.0)
        assert order[row["b"].number] == number
        assert row["b"].cosine == pytest.approx(1)
    with pytest.raises(ValueError, match="expected equal ones"):
        dashboards.match({"a": first, "b": SparseAutoencoder(8, 4)}, [0])
    with pytest.raises(ValueError, match=rf"allowed 0\.\.{WIDTH - 1}"):
        dashboards.match({"a": first}, [WIDTH])


def test_side_by_side_and_figures_show_what_was_measured(lm, store, recwarn):
    saes = {"one": autoencoder(store), "two": autoencoder(store, "topk")}
    rows = dashboards.match(saes, [0, 5])
    boards = {
        name: dashboards.measure(sae, lm, store, [row[name].number for row in rows], name=name)
        for name, sae in saes.items()
    }
    soup = BeautifulSoup(dashboards.side_by_side(boards, rows), "html.parser")
    assert [s.get_text() for s in soup.find_all("strong")] == [
        "one 0",
        "two 0, cosine 1.00",
        "one 5",
        "two 5, cosine 1.00",
    ]
    assert "never fires" in soup.get_text()
    spans = [s for s in soup.find_all("span") if s.get("title")]
    best = boards["one"][5].top[0]
    assert any(s["title"] == f"{best.activation:.3g}" and "bold" in s["style"] for s in spans)
    figure = dashboards.figure([(boards[name], row[name].number) for row in rows for name in boards])
    figure.canvas.draw()
    assert len(figure.axes) == 4
    drawn = [t.get_text() for t in figure.axes[2].texts]
    assert f"top: {best.activation:.2g}" in drawn
    assert boards["one"].tokens[best.tokens[best.position]] in drawn
    assert [str(w.message) for w in recwarn] == []
    with pytest.raises(ValueError, match="0 panels"):
        dashboards.figure([])


def test_figures_and_pages_take_any_text(hostile, recwarn):
    board, _ = hostile
    figure = dashboards.figure([(board, latent.number) for latent in board if latent.firings][:3])
    figure.canvas.draw()
    assert [str(w.message) for w in recwarn] == []
