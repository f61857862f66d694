"""What ACC050 to ACC059 are, with examples, for the documentation and the tests."""

from __future__ import annotations

from accel.convert.rule import Example, Rule

RULES = (
    Rule(
        id="ACC050",
        name="streams-and-events",
        title="Streams and events of torch.cuda",
        why="accel.Stream and accel.Event make torch's generic ones on an accelerator. On a CPU, "
        "where torch.cuda's raise, streams have nothing to wait for and events note the time.",
        ascend="One kind throughout: torch_npu's own events do not go into generic streams.",
        action="convert",
        effort="auto",
        examples=(
            Example(
                before="import torch\n\nside = torch.cuda.Stream()\n"
                "side.wait_stream(torch.cuda.current_stream())\n"
                "with torch.cuda.stream(side):\n    y = f(x)\n",
                after="import torch\nimport accel\n\nside = accel.Stream()\n"
                "side.wait_stream(accel.current_stream())\n"
                "with accel.stream(side):\n    y = f(x)\n",
            ),
            Example(
                before="import torch\n\nstart = torch.cuda.Event(enable_timing=True)\n"
                "start.record()\n",
                after="import torch\nimport accel\n\nstart = accel.Event(enable_timing=True)\n"
                "start.record()\n",
            ),
            Example(
                before="import torch\n\ndef f(s: torch.cuda.Stream | None) -> None:\n    pass\n",
                after="import torch\nimport accel\n\n"
                "def f(s: accel.Stream | None) -> None:\n    pass\n",
            ),
            Example(
                before="import torch\n\ns = torch.cuda.Stream()\nlaunch(s.cuda_stream)\n",
                after="import torch\nimport accel\n\ns = accel.Stream()\nlaunch(s.native_handle)\n",
            ),
        ),
        kept=(
            "import torch\n\ns = torch.Stream()\n",
            "import torch\n\nclass Mine(torch.cuda.Stream):\n    pass\n",
            "import torch\n\nlow, high = torch.cuda.Stream.priority_range()\n",
            "import torch\n\ns = torch.cuda.ExternalStream(pointer)\n",
            "import torch\n\nprint(task.priority, queue.priority_range())\n",
            "from threading import Event\n\nEvent().set()\n",
            "from cupy.cuda import Stream\n\nStream(non_blocking=True)\n",
        ),
    ),
    Rule(
        id="ACC051",
        name="record-stream",
        title="Calls of tensor.record_stream(stream)",
        why="A tensor on a CPU refuses it. accel.record_stream(tensor, stream) does nothing there.",
        ascend="The tensor's own record_stream.",
        action="convert",
        effort="auto",
        examples=(
            Example(
                before="import torch\n\nbatch['x'].record_stream(torch.cuda.current_stream())\n",
                after="import torch\nimport accel\n\n"
                "accel.record_stream(batch['x'], accel.current_stream())\n",
            ),
        ),
        kept=(
            "import torch\n\nclass A:\n    def f(self, s):\n        self.record_stream(s)\n",
            "camera.record_stream(url)\n",
            "import torch\n\nrecorder.record_stream(url, seconds=3)\n",
            "import torch\n\nclass Batch:\n    def record_stream(self, s):\n        pass\n\n"
            "b = Batch()\nb.record_stream(s)\n",
            "import torch\n\nclass Batch:\n    def record_stream(self, s):\n        pass\n\n"
            "def f(batch, s):\n    batch.record_stream(s)\n",
        ),
    ),
    Rule(
        id="ACC052",
        name="raw-stream-handle",
        title="The raw handle of a CUDA stream",
        why="stream.cuda_stream is a pointer for code that is written in CUDA, which cannot run "
        "elsewhere. A stream that is converted is torch's generic one, which calls it "
        "native_handle.",
        ascend="The handle of an NPU stream is for code that is written for CANN.",
        action="flag",
        effort="review",
        examples=(
            Example(
                before="import torch\n\nlaunch(torch.get_default_device(), s.cuda_stream)\n",
                after="import torch\n\nlaunch(torch.get_default_device(), s.cuda_stream)\n",
            ),
        ),
        kept=(
            "class A:\n    def __init__(self, s):\n        self.cuda_stream = s\n\n"
            "    def f(self):\n        return self.cuda_stream\n",
        ),
    ),
    Rule(
        id="ACC053",
        name="cuda-graphs",
        title="CUDA graphs",
        why="They replay what a GPU has recorded.",
        ascend="NPU graphs serve inference only.",
        action="flag",
        effort="rewrite",
        examples=(
            Example(
                before="import torch\n\ng = torch.cuda.CUDAGraph()\n"
                "with torch.cuda.graph(g):\n    y = f(x)\n",
                after="import torch\n\ng = torch.cuda.CUDAGraph()\n"
                "with torch.cuda.graph(g):\n    y = f(x)\n",
            ),
        ),
        kept=(
            "import torch\n\nf = torch.cuda.make_graphed_callables(f, (x,))\n",
            "from torch.cuda import CUDAGraph\n\ng = CUDAGraph()\n",
            "from torch.cuda.graphs import graph\n\nwith graph(g):\n    pass\n",
            "from torch.fx import graph\n\ngraph.Graph()\n",
        ),
    ),
    Rule(
        id="ACC054",
        name="nvtx",
        title="Marks for the profiler",
        why="torch.cuda.nvtx raises without CUDA. accel's marks are NVTX on CUDA, MSTX on Ascend, "
        "and nothing elsewhere.",
        ascend="MSTX, which msprof shows.",
        action="convert",
        effort="auto",
        examples=(
            Example(
                before="import torch\n\ntorch.cuda.nvtx.range_push('forward')\n"
                "torch.cuda.nvtx.range_pop()\n",
                after="import torch\nimport accel\n\naccel.range_push('forward')\n"
                "accel.range_pop()\n",
            ),
            Example(
                before="import torch\nfrom torch.cuda import nvtx\n\n"
                "with nvtx.range('step {}', i):\n    step()\n",
                after="import torch\nimport accel\n\n"
                "with accel.annotate('step {}', i):\n    step()\n",
            ),
        ),
        kept=(
            "import nvtx\n\nwith nvtx.annotate('step'):\n    step()\n",
            "class nvtx:\n    range = range\n\nfor i in nvtx.range(3):\n    pass\n",
        ),
    ),
    Rule(
        id="ACC055",
        name="profiler-activities",
        title="ProfilerActivity.CUDA",
        why="It names CUDA's activity. accel.profiler_activities() is the CPU's and that of the "
        "device which is here.",
        ascend="ProfilerActivity.PrivateUse1, which torch_npu records.",
        action="convert",
        effort="auto",
        examples=(
            Example(
                before="from torch.profiler import ProfilerActivity, profile\n\n"
                "with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as p:\n"
                "    step()\n",
                after="from torch.profiler import ProfilerActivity, profile\nimport accel\n\n"
                "with profile(activities=accel.profiler_activities()) as p:\n    step()\n",
            ),
            Example(
                before="import torch\n\nkinds = [torch.profiler.ProfilerActivity.CPU]\n"
                "kinds.append(torch.profiler.ProfilerActivity.CUDA)\n",
                after="import torch\nimport accel\n\n"
                "kinds = [torch.profiler.ProfilerActivity.CPU]\n"
                "kinds.extend(accel.profiler_activities(cpu=False))\n",
            ),
        ),
        kept=(
            "import torch\n\nrecord(torch.profiler.ProfilerActivity.CUDA)\n",
            "import torch\n\nkinds = [torch.profiler.ProfilerActivity.CPU]\n",
            "import torch\n\nfrom myprofiler import Kind\n\nkinds = [Kind.CUDA]\n",
            "from torch.profiler import ProfilerActivity as A\n\nkinds = (A.CPU, A.CUDA)\n",
            "from torch.profiler import ProfilerActivity as A\n\n"
            "kinds = [\n    A.CPU,  # host\n    A.CUDA,\n]\n",
        ),
    ),
    Rule(
        id="ACC056",
        name="older-profilers",
        title="Older forms of torch's profiler",
        why="use_cuda=True and emit_nvtx() record CUDA only. The names of times that hold the word "
        "cuda mean any device in torch's profiler.",
        ascend="torch.profiler records the NPU.",
        action="flag",
        effort="review",
        examples=(
            Example(
                before="import torch\n\n"
                "with torch.autograd.profiler.profile(use_cuda=True) as p:\n    step()\n",
                after="import torch\n\n"
                "with torch.autograd.profiler.profile(use_cuda=True) as p:\n    step()\n",
            ),
        ),
        kept=(
            "import torch\n\nwith torch.autograd.profiler.emit_nvtx():\n    step()\n",
            "import torch\n\nwith torch.autograd.profiler.profile(use_cuda=False) as p:\n"
            "    step()\n\nprint(p.key_averages().table(sort_by='cuda_time_total'))\n"
            "print(p.key_averages()[0].self_cuda_time_total)\n",
            "run(use_cuda=True)\n",
        ),
    ),
    Rule(
        id="ACC057",
        name="cuda-profiler",
        title="Start and stop of NVIDIA's profiler",
        why="cudaProfilerStart() is a call of the CUDA runtime.",
        ascend="torch.profiler with a schedule.",
        action="flag",
        effort="review",
        examples=(
            Example(
                before="import ctypes\n\nlib = ctypes.CDLL('lib.so')\nlib.cudaProfilerStart()\n",
                after="import ctypes\n\nlib = ctypes.CDLL('lib.so')\nlib.cudaProfilerStart()\n",
            ),
        ),
        kept=("import torch\n\ntorch.cuda.cudart().cudaProfilerStop()\n",),
    ),
)
