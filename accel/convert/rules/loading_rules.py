"""The rules about `torch.load` as data: ACC070 to ACC072."""

from __future__ import annotations

from accel.convert.rule import Example, Rule

_T = "import torch\n"
_A = "import torch\nimport accel\n"
RULES = (
    Rule(
        id="ACC070",
        name="map-location",
        title="A map_location that names CUDA",
        why="What is read would go to an NVIDIA device. `accel.map_location(n)` is the device of "
        "that number here; without a number, the current one.",
        ascend="Checkpoints of both CUDA and Ascend can be read with it.",
        action="convert",
        effort="auto",
        examples=(
            Example(
                _T + "\na = torch.load(p, map_location='cuda')\n"
                "b = torch.load(p, 'cuda:1')\n"
                "c = torch.load(p, map_location=lambda storage, loc: storage.cuda(gpu))\n"
                "d = torch.load(p, map_location=torch.device('cuda', rank), weights_only=True)\n",
                _A + "\na = torch.load(p, map_location=accel.map_location())\n"
                "b = torch.load(p, accel.map_location(1))\n"
                "c = torch.load(p, map_location=accel.map_location(gpu))\n"
                "d = torch.load(p, map_location=accel.map_location(rank), weights_only=True)\n",
            ),
            Example(
                _T + "\nm = Net.load_from_checkpoint(p, map_location=f'cuda:{rank}')\n"
                "n = torch.load(p, 'cuda' if torch.cuda.is_available() else 'cpu')\n",
                _A + "\nm = Net.load_from_checkpoint(p, map_location=accel.map_location(rank))\n"
                "n = torch.load(p, accel.map_location())\n",
            ),
        ),
        kept=(
            _T + "\nx = torch.load(p, map_location='cpu')\n",
            _T + "\nx = torch.load(p, map_location=lambda storage, loc: storage)\n",
            _T + "\nx = torch.load(p, map_location=device)\n",
            _T + "\nx = torch.load('/runs/cuda/last.pt', map_location='cpu')\n",
            _T + "\nx = torch.load(p, map_location=lambda s, l: s.cuda() if big else s)\n",
            _T + "\nx = torch.load(p, map_location=None)\n",
        ),
    ),
    Rule(
        id="ACC071",
        name="map-location-table",
        title="A map_location that is a table",
        why="`{'cuda:0': 'cuda:1'}` says where to put what was saved on one device. The entry "
        "stays for checkpoints of CUDA's, its goal becomes the device here, and an entry for "
        "checkpoints that were saved on this kind of device is added.",
        ascend="A checkpoint's device is `npu:0` there.",
        action="convert",
        effort="auto",
        examples=(
            Example(
                _T + "\nx = torch.load(p, map_location={'cuda:0': 'cuda:%d' % rank})\n",
                _A + "\nx = torch.load(p, map_location={'cuda:0': accel.device_str(rank), "
                "accel.device_str(0): accel.device_str(rank)})\n",
            ),
        ),
        kept=(
            _T + "\nx = torch.load(p, map_location={'cuda:0': 'cpu'})\n",
            _T + "\nx = torch.load(p, map_location={'cuda:0': place})\n",
        ),
    ),
    Rule(
        id="ACC072",
        name="map-location-absent",
        title="A torch.load without map_location",
        why="Each tensor goes to the device that it was saved on, and where there is none of "
        "that kind the load fails. What is only put into modules by `load_state_dict` is copied "
        "to where they are, so the device that is there serves, if numbers and settings are all "
        "else that is read. Anything else may be data that belongs on the CPU: that is for a "
        "human.",
        ascend="Checkpoints saved on an Ascend cannot be read elsewhere without it.",
        action="convert",
        effort="auto",
        examples=(
            Example(
                _T + "\nnet.load_state_dict(torch.load(path))\n"
                "state = torch.load(path, weights_only=False)\nepoch = state['epoch']\n"
                "net.load_state_dict(state['model'])\n",
                _A + "\nnet.load_state_dict(torch.load(path, map_location=accel.map_location()))\n"
                "state = torch.load(path, map_location=accel.map_location(), weights_only=False)\n"
                "epoch = state['epoch']\nnet.load_state_dict(state['model'])\n",
            ),
        ),
        kept=(
            _T + "\ndata = torch.load('traindata.pt')\n",
            _T + "\nstate = torch.load(p)\nnet.load_state_dict(state['model'])\n"
            "torch.set_rng_state(state['rng_state'])\n",
            _T + "\nmodel = torch.load(f)\nmodel(x)\n",
            _T + "\nnet.load_state_dict(torch.load(p), assign=True)\n",
            _T + "\nc = torch.load(p)\nnet.load_state_dict(c['net'])\n"
            "plot(c['loss_history'].numpy())\n",
            _T + "\nc = torch.load(p)\nnet.load_state_dict(c['net'])\n"
            "generator.set_state(c['generator'])\n",
            _T + "\nc = torch.load(p)\nnet.load_state_dict(c['net'])\nx = data[c['order']]\n",
            _T + "\nsampler.load_state_dict(torch.load(p))\n",
            _T + "\nx = torch.load(*arguments)\n",
            _T + "\nx = torch.load(p, **options)\n",
            "import pickle\n\nx = pickle.load(f)\n",
        ),
    ),
)
