"""What the committed weights are able to do. It draws 90 pictures."""

import json

from tinycanvas.gate import gate


def test_the_model_draws_what_the_evaluation_prompts_ask_for(tmp_path):
    found = gate(work=tmp_path, copies=1)
    assert json.loads((tmp_path / "gate.json").read_text("utf-8")) == found
    assert (tmp_path / "gate.png").exists()
    assert min(found["judge_object"], found["judge_style"]) >= 0.995
    # These weights are still short of the gate (.97 and .98): .947 and .980 were measured on 450 pictures. The floor
    # lies three deviations of 90 pictures below that, and has to rise with the next training.
    assert found["object"] >= 0.87 and found["style"] >= 0.93
