"""The rules about comparisons of devices as data: ACC031 to ACC035."""

from __future__ import annotations

from accel.convert.rule import Example, Rule, unchanged

_T = "import torch\n"
_A = "import torch\nimport accel\n"


RULES = (
    Rule(
        id="ACC031",
        name="device-is-cuda",
        title="Questions like device.type == 'cuda', 'cuda' in device, device.startswith('cuda')",
        why="The question is mostly whether the device is an accelerator, so that memory is "
        "pinned or a stream used. `accel.is_accelerator(device)` asks that, of a device, its "
        "type or its name; it is True on CUDA and False on a CPU, as before. `device == 'cuda'` is "
        "only converted where the other side surely is a word without a number: 'cuda:0' does not "
        "equal it, nor does a `torch.device`.",
        ascend="It is True for npu.",
        action="convert",
        effort="auto",
        examples=(
            Example(
                _T + "\nif device.type == 'cuda':\n    print(0)\n"
                "if x.device.type != 'cuda':\n    print(1)\n",
                _A + "\nif accel.is_accelerator(device):\n    print(0)\n"
                "if not accel.is_accelerator(x.device):\n    print(1)\n",
            ),
            Example(
                _T + "\ndevice = read()\nkind = 'gpu' if 'cuda' in device else 'cpu'\n"
                "if 'cuda' not in str(device) or args.device.startswith('cuda'):\n    print(2)\n",
                _A + "\ndevice = read()\nkind = 'gpu' if accel.is_accelerator(device) else 'cpu'\n"
                "if not accel.is_accelerator(device) or accel.is_accelerator(args.device):\n"
                "    print(2)\n",
            ),
            Example(
                _T + "\ndevice = 'cuda' if big else 'cpu'\npin = device == 'cuda'\n"
                "kind = getattr(place, 'type', None)\nfast = kind == 'cuda'\n",
                _A + "\ndevice = accel.default_device_type() if big else 'cpu'\n"
                "pin = accel.is_accelerator(device)\n"
                "kind = getattr(place, 'type', None)\nfast = accel.is_accelerator(str(kind))\n",
            ),
        ),
        kept=(
            _T + "\nif 'cuda' in text:\n    print(1)\n",
            _T + "\nif line.startswith('cuda'):\n    print(1)\n",
            _T + "\nif 'cuda' in os.listdir(folder):\n    print(1)\n",
            _T + "\nif 'cuda' in results:\n    print(1)\n",
            _T + "\nmatch kind:\n    case 'cuda':\n        print(1)\n",
            _T + "\nif a == b == 'cuda':\n    print(1)\n",
            _T + "\nif node.op == 'cuda':\n    print(1)\n",
            _T + "\nif token.type == 'cuda':\n    print(1)\n",
            _T + "\nif host == 'cuda':\n    print(1)\n",
            _T + "\nif device.type == 'cuda':\n    net = torch.nn.DataParallel(net)\n",
            _T + "\nif 'cuda' in devices:\n    print(1)\n",
            _T + "\ndef index(device: str):\n"
            "    return 0 if device == 'cuda' else int(device.split(':')[1])\n",
            _T + "\ndef f(x):\n    return x.half() if x.device == 'cuda' else x\n",
            _T + "\nif str(device) != 'cuda':\n    print(1)\n",
            _T + "\nrows = [r for r in records if r.device == 'cuda']\n",
            _T + "\nif torch.accelerator.current_accelerator().type == 'cuda':\n    print(1)\n",
        ),
    ),
    Rule(
        id="ACC032",
        name="device-is-one",
        title="Comparisons with one device: device == 'cuda:1'",
        why="What names a device of a number elsewhere names the CPU on a CPU: converted, the "
        "comparison would become true there.",
        ascend="It is False for npu:1.",
        action="flag",
        effort="review",
        examples=(
            *unchanged(_T + "\nif str(x.device) == 'cuda:1':\n    print(1)\n"),
            *unchanged(_T + "\nif x.device == torch.device('cuda'):\n    print(1)\n"),
        ),
        kept=(
            _T + "\nassert x.device != torch.device('cuda', 0)\n",
            _T + "\nif torch.device('cuda') in places:\n    print(1)\n",
        ),
    ),
    Rule(
        id="ACC033",
        name="cuda-is-a-choice",
        title="Choices of another kind: impl == 'cuda'",
        why="The word names an implementation, a backend of the program's own, a fused kernel, "
        "or something in a file. Changed, it would lead into code that another device cannot "
        "run.",
        ascend="The path for other devices is taken; a kernel of Ascend's may be added as a "
        "choice.",
        action="keep",
        effort="auto",
        examples=(
            *unchanged(
                _T + "\ndef up(x, impl='cuda'):\n    assert impl in ['ref', 'cuda']\n"
                "    if impl == 'cuda' and x.device.type == 'cuda' and _init():\n"
                "        return _up_cuda().apply(x)\n    return x\n"
            ),
            *unchanged(
                _T + "\ndef optimizer(groups, device_type):\n"
                "    use_fused = available and device_type == 'cuda'\n"
                "    return torch.optim.AdamW(groups, fused=use_fused)\n"
            ),
        ),
        kept=(
            _T + "\nif backend == 'cuda':\n    print(1)\n",
            _T + "\nif self.kernel_impl != 'cuda':\n    print(1)\n",
            _T + "\nif cfg['engine'] == 'cuda':\n    print(1)\n",
            _T + "\nif impl in ('cuda', 'triton'):\n    print(1)\n",
            _T + "\ndef patch(module, device_node):\n    for graph in module.graphs:\n"
            "        for node in graph.findAllNodes('prim::Constant'):\n"
            "            if 'value' in node.attributeNames():\n"
            "                if str(node['value']).startswith('cuda'):\n"
            "                    node.copyAttributes(device_node)\n",
            _T + "\nif device.type == 'cuda':\n    y = my_op_cuda(x)\n",
            _T + "\nopt = torch.optim.AdamW(p, fused=device.type == 'cuda')\n",
            _T + "\ndef should_use_custom_op(x):\n    if x.device.type != 'cuda':\n"
            "        return False\n    return True\n",
            _T + "\nif use_triton and x.device.type == 'cuda':\n    y = fast(x)\n",
        ),
    ),
    Rule(
        id="ACC034",
        name="allowed-devices",
        title="Lists of allowed devices: device in ['cuda', 'cpu']",
        why="A list of the devices that a program takes leaves other accelerators out; which it "
        "could take is the author's to say.",
        ascend="`npu` is refused.",
        action="flag",
        effort="review",
        examples=(*unchanged(_T + "\nassert args.device in ['cuda', 'cpu']\n"),),
        kept=(
            _T + "\nif device not in ('cpu', 'cuda', 'auto'):\n    raise ValueError(device)\n",
            _T + "\nfast = x.device.type in ('cuda', 'xpu')\n",
            _T + "\nfast = x.device.type in ('cuda', 'npu')\n",
        ),
    ),
    Rule(
        id="ACC035",
        name="device-name-parsed",
        title="Names taken apart: device.replace('cuda:', '')",
        why="The name is taken apart as text. What is read there mostly comes from the command "
        "line, where users write cuda.",
        ascend="`npu:0` would not be parsed.",
        action="flag",
        effort="review",
        examples=(*unchanged(_T + "\nindex = int(device.replace('cuda:', ''))\n"),),
        kept=(
            _T + "\nn = args.device.split('cuda:')[1]\n",
            _T + "\nname = path.replace('cuda', 'hip')\n",
            _T + "\nif str(device).endswith('cuda'):\n    print(1)\n",
        ),
    ),
)
