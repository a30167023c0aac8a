"""What the committed weights are able to do. It draws 90 pictures."""

import json

from tinycanvas.build.gate import gate


def test_the_model_draws_what_the_evaluation_prompts_ask_for(tmp_path):
    found = gate(work=tmp_path, copies=1)
    assert json.loads((tmp_path / "gate.json").read_text("utf-8")) == found
    assert (tmp_path / "gate.png").exists()
    assert min(found["judge_object"], found["judge_style"]) >= 0.995
    # .991 and 1.000 were measured on 450 pictures. Of 90 pictures one or two more may fail by chance than the
    # gate's .97 allows: three deviations below .991 are .96.
    assert found["object"] >= 0.96 and found["style"] >= 0.98
