"""Where `torch.load` puts what it reads."""

import ast

import pytest
import torch

from accel.convert.engine import convert_source
from accel.convert.options import Options


def convert(program: str):
    result = convert_source(program.encode(), "program.py", Options())
    assert result.error == ""
    assert [entry for entry in result.ledger if entry.action == "missing"] == []
    ast.parse(result.after)
    again = convert_source(result.after, "program.py", Options())
    assert again.after == result.after
    return result


LOCATIONS = {
    "'cuda'": "accel.map_location()",
    "'cuda:2'": "accel.map_location(2)",
    "f'cuda:{rank}'": "accel.map_location(rank)",
    "'cuda:' + str(gpu)": "accel.map_location(int(gpu))",
    "torch.device('cuda')": "accel.map_location()",
    "torch.device('cuda:1')": "accel.map_location(1)",
    "torch.device('cuda', args.gpu)": "accel.map_location(args.gpu)",
    "torch.device(f'cuda:{rank}')": "accel.map_location(rank)",
    "'cuda' if torch.cuda.is_available() else 'cpu'": "accel.map_location()",
    "torch.device('cuda' if torch.cuda.is_available() else 'cpu')": "accel.map_location()",
    "lambda storage, loc: storage.cuda()": "accel.map_location()",
    "lambda storage, loc: storage.cuda(gpu)": "accel.map_location(gpu)",
    "lambda s, _: s.cuda(torch.cuda.current_device())": "accel.map_location()",
    "'cuda' if flag else 'cpu'": "accel.default_device_type() if flag else 'cpu'",
    # Not changed.
    "'cpu'": "'cpu'",
    "None": "None",
    "device": "device",
    "lambda storage, loc: storage": "lambda storage, loc: storage",
    "lambda storage, loc: storage.cuda(loc)": "lambda storage, loc: storage.cuda(loc)",
    "{'cuda:0': 'cpu'}": "{'cuda:0': 'cpu'}",
    "{'cuda': 'cuda:1'}": "{'cuda': 'cuda:1'}",
}


@pytest.mark.parametrize(("before", "wanted"), LOCATIONS.items())
@pytest.mark.parametrize("form", ["torch.load(p, {})", "torch.load(p, map_location={})"])
def test_locations(form, before, wanted) -> None:
    result = convert("import torch\nx = " + form.replace("{}", before) + "\n")
    assert result.after.decode().splitlines()[-1] == "x = " + form.replace("{}", wanted)


def test_the_table_names_both_kinds_of_checkpoint() -> None:
    result = convert("import torch\nx = torch.load(p, map_location={'cuda:0': f'cuda:{rank}'})\n")
    assert result.after.decode().endswith(
        "{'cuda:0': accel.device_str(rank), accel.device_str(0): accel.device_str(rank)})\n"
    )


STATES = {
    "net.load_state_dict(torch.load(p))": True,
    "net.load_state_dict(torch.load(p), strict=False)": True,
    "net.load_state_dict(torch.load((p)))": True,
    "net.load_state_dict(torch.load(open(p, 'rb'),))": True,
    "net.load_state_dict(torch.load(p)['model'])": True,
    "net.load_state_dict(torch.load(p)[key])": True,
    "s = torch.load(p)\nnet.load_state_dict(s)\nprint(s['epoch'])": True,
    "s = torch.load(p)\nnet.load_state_dict({k[7:]: v for k, v in s.items()})": True,
    "s = torch.load(p)\nif 'model' in s:\n    net.load_state_dict(s['model'])": True,
    "s = torch.load(p)\nnet.load_state_dict(s['m'])\ntorch.set_rng_state(s['rng'])": False,
    "s = torch.load(p)\nnet.load_state_dict(s)\nkeep(s)": False,
    "x = torch.load(p)": False,
    "net.load_state_dict(torch.load(p), assign=True)": False,
    "net.load_state_dict(torch.load(p), True, True)": False,
    "net.load_state_dict(torch.load(p), assign=False)": True,
    "net.load_state_dict(torch.load(p), **more)": False,
    "generator.load_state_dict(torch.load(p)['generator'])": True,
    "sampler.load_state_dict(torch.load(p))": False,
    "s = torch.load(p)\nnet.load_state_dict(s['m'])\ng.set_state(s['generator'])": False,
    "s = torch.load(p)\nnet.load_state_dict(s['m'])\nx = s['loss_history'].numpy()": False,
    "s = torch.load(p)\nnet.load_state_dict(s['m'])\nx = y[s['order']]": False,
    "s = torch.load(p)\nnet.load_state_dict(s['m'])\nx = s['means']": False,
    "s = torch.load(p)\nnet.load_state_dict(s['m'])\nx = s['means']\nprint(x)": True,
    "s = torch.load(p)\nnet.load_state_dict(s['m'])\nx = s['means']\nprint(x.numpy())": False,
    "s = torch.load(p)\nnet.load_state_dict(s['m'])\nprint(f'{s[0]} {float(s[1])}')": True,
    "s = torch.load(p)\nw = s['m']\nnet.load_state_dict(w)\nb = s['best_acc'] + 1": True,
    "s = torch.load(p)\nnet.load_state_dict(s.get('m'))\nx = s.get('globalStep', 0)": True,
    "s = torch.load(p)\nnet.load_state_dict(s.pop('m'))\nx = s.pop('table')": False,
    "s = torch.load(p)\nnet.load_state_dict(s)\nif s['x'] > 2:\n    y = s['z'].item()": True,
    "f(torch.load(p))": False,
    "self.data = torch.load(p)": False,
    "a, b = torch.load(p)": False,
    "net.load_state_dict(torch.load(p, **more))": False,
}


@pytest.mark.parametrize(("program", "is_state"), STATES.items())
def test_only_states_are_read_elsewhere(program, is_state) -> None:
    result = convert(f"import torch\n{program}\n")
    assert (b"map_location=accel.map_location()" in result.after) is is_state
    if not is_state and "**" not in program:
        assert [f.rule for f in result.findings if f.action == "flag"] == ["ACC072"]


@pytest.mark.parametrize(
    "location",
    [
        "lambda s, l: s.cuda()",
        "lambda s, l: s.cuda(0)",
        "lambda s, l: s.cuda(device=0) if True else s",
        "lambda s, l: s.cuda(non_blocking=True)",
    ],
)
@pytest.mark.parametrize("through", [True, False])
def test_a_location_works_wherever_it_is_handed_to(location, through) -> None:
    """Storages take no device by place: `load` is a function of the program's own, or torch's."""
    program = (
        "import io\nimport torch\n\nbuffer = io.BytesIO()\ntorch.save(torch.ones(2), buffer)\n"
        "buffer.seek(0)\n\ndef load(where):\n    return torch.load(buffer, map_location=where)\n\n"
    )
    last = (
        f"x = load({location})\n" if through else f"x = torch.load(buffer, None or ({location}))\n"
    )
    result = convert(program + last)
    assert b"cuda" not in result.after
    names: dict[str, torch.Tensor] = {}
    exec(result.after, names)
    assert names["x"].tolist() == [1.0, 1.0]


def test_a_variable_that_is_a_part_of_itself() -> None:
    text = (
        "import torch\nstate = torch.load(p)\nstate = state['model']\nother = state['x']\n"
        "state = other['y']\nnet.load_state_dict(state)\n"
    )
    result = convert_source(text.encode(), "program.py", Options())
    assert result.error == ""
    assert {f.action for f in result.findings if f.rule == "ACC072"} == {"flag"}
