"""The four commands one after the other, as a user types them."""

import pytest

pytestmark = pytest.mark.slow


def test_score_filter_compare_and_card(run, step, dataset, checkpoint, real):
    sets = f"{dataset} --net {checkpoint} --real sysu:{real.root} --device cpu"
    result = step(f"score {sets}")
    assert result["pairs"] == 20 and set(result["made"]) == {"identity", "modality", "diversity", "memorisation"}

    result = step(f"filter {dataset} --keep-fraction identity=0.9 --max memorisation=calibrated")
    assert result["dropped"] == len((dataset / "dropped.jsonl").read_text().splitlines()) == 2
    assert (dataset / "scores" / "filter.html").stat().st_size > 10_000
    code, _, error = run(f"score {sets}")
    assert code == 0 and "run dive-fast filter again" in error

    rows = step(f"compare-sets {sets} --kept-only")["rows"]
    assert [row["made"] for row in rows][-2:] == [18, 18]
    assert run(f"card {dataset} --licence none")[1].startswith(f"card {dataset / 'README.md'}\n")
    assert "Distance to real sets" in (dataset / "README.md").read_text()
    assert step(f"filter {dataset} --undo")["back"] == 2


def test_bad_input_ends_with_2(run, dataset, checkpoint, real, make_net):
    for line, words in (
        (f"score {dataset} --net {make_net(synthetic=1)} --real sysu:{real.root}", "trained on 1 synthetic images"),
        (f"score {dataset} --net {checkpoint} --real tree:x", "LAYOUT:PATH"),
        (f"filter {dataset}", "give a threshold"),
        (f"filter {dataset} --undo --min identity=1", "--undo goes with no threshold"),
        (f"compare-sets {dataset} --real sysu:{real.root}", "either --net or --extractor"),
        (f"card {dataset.parent}", "no synthesized dataset"),
    ):
        code, _, error = run(line)
        assert code == 2 and words in error, error
