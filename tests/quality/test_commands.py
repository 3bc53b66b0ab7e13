"""The four commands one after the other, as a user types them."""

from __future__ import annotations

import json


def test_score_filter_compare_and_card(run, dataset, checkpoint, real, make_net):
    sets = ("--real", f"sysu:{real.root}")
    code, out, _ = run("score", dataset, "--net", checkpoint, *sets, "--device", "cpu", "--json")
    assert code == 0
    result = json.loads(out.splitlines()[-1])
    assert result["pairs"] == 20 and set(result["made"]) == {"identity", "modality", "diversity", "memorisation"}

    code, out, _ = run("filter", dataset, "--keep-share", "identity=0.9", "--max", "memorisation=calibrated", "--json")
    assert code == 0
    result = json.loads(out.splitlines()[-1])
    assert result["dropped"] == len((dataset / "dropped.jsonl").read_text().splitlines()) == 2
    assert (dataset / "scores" / "filter.html").stat().st_size > 10_000
    code, out, error = run("score", dataset, "--net", checkpoint, *sets, "--device", "cpu")
    assert code == 0 and "run dive-fast filter again" in error

    code, out, _ = run("compare-sets", dataset, "--net", checkpoint, *sets, "--kept-only", "--device", "cpu", "--json")
    assert code == 0 and [row["made"] for row in json.loads(out.splitlines()[-1])["rows"]][-2:] == [18, 18]
    code, out, _ = run("card", dataset, "--licence", "none")
    assert (code, out) == (0, f"card {dataset / 'README.md'}\n")
    assert "Distance to real sets" in (dataset / "README.md").read_text()
    code, out, _ = run("filter", dataset, "--undo", "--json")
    assert (code, json.loads(out.splitlines()[-1])["back"]) == (0, 2)


def test_bad_input_ends_with_2(run, dataset, checkpoint, real, make_net):
    seen = make_net(synthetic=1)
    for arguments, words in (
        (("score", dataset, "--net", seen, "--real", f"sysu:{real.root}"), "trained on 1 synthetic images"),
        (("score", dataset, "--net", checkpoint, "--real", "tree:x"), "LAYOUT:PATH"),
        (("filter", dataset), "give a threshold"),
        (("filter", dataset, "--undo", "--min", "identity=1"), "--undo goes with no threshold"),
        (("compare-sets", dataset, "--real", f"sysu:{real.root}"), "either --net or --extractor"),
        (("card", dataset.parent), "no synthesized dataset"),
    ):
        code, _, error = run(*arguments)
        assert code == 2 and words in error, error
