"""The rules about names, as data."""

from __future__ import annotations

from accel.convert.rule import Rule, unchanged
from accel.convert.rules import names_kept as kept

RULES = (
    Rule(
        id="ACC140",
        name="comment",
        title="Comments are left as they are",
        why="A comment runs nowhere. What it says of CUDA stays true there.",
        ascend="Nothing.",
        action="keep",
        effort="auto",
        examples=unchanged("x = 1  # moved to cuda later\n"),
        kept=kept.COMMENTS,
    ),
    Rule(
        id="ACC141",
        name="own-name",
        title="Variables, parameters, functions and classes of the program",
        why="`use_cuda = ...` binds a name that only this program reads. Renaming it would break "
        "whoever else reads it, and gain nothing; what is assigned to it is judged by itself.",
        ascend="The value follows the device that is there, the name stays.",
        action="keep",
        effort="auto",
        examples=unchanged("use_cuda = True\nif use_cuda:\n    print(use_cuda)\n"),
        kept=kept.OWN_NAMES,
    ),
    Rule(
        id="ACC142",
        name="own-attribute",
        title="Attributes that the tree itself assigns or defines",
        why="`self.use_cuda` is what an assignment set, here or in another file of the tree. "
        "It is no attribute of torch's.",
        ascend="Nothing.",
        action="keep",
        effort="auto",
        examples=unchanged(
            "class Trainer:\n    def __init__(self, flag):\n        self.use_cuda = flag\n\n"
            "    def ready(self):\n        return self.use_cuda\n"
        ),
        kept=kept.OWN_ATTRIBUTES,
    ),
    Rule(
        id="ACC143",
        name="command-line-option",
        title="Command-line options and the arguments read from them",
        why="`--cuda` is what users and scripts type, and `args.cuda` is its value. If one "
        "is renamed and the other is not, the program stops at its first line.",
        ascend="`--cuda` then means the accelerator that is there.",
        action="keep",
        effort="auto",
        examples=unchanged(
            "import argparse\n\nparser = argparse.ArgumentParser()\n"
            "parser.add_argument('--cuda', action='store_true')\nargs = parser.parse_args()\n"
            "print(args.cuda)\n"
        ),
        kept=kept.OPTIONS,
    ),
    Rule(
        id="ACC144",
        name="docstring",
        title="Docstrings and strings that stand alone",
        why="They are documentation; nothing of the program depends on them.",
        ascend="Nothing.",
        action="keep",
        effort="auto",
        examples=unchanged('def f():\n    """Runs on cuda:0."""\n'),
        kept=kept.DOCSTRINGS,
    ),
    Rule(
        id="ACC145",
        name="text-for-people",
        title="Messages, help texts and other words for people",
        why="A string that is printed, logged, raised or shown as help selects no device. So does "
        "none with blanks between words, since no device or backend is spelled so, unless the "
        "program looks for it in another text, such as an error's message.",
        ascend="The text may say CUDA where an NPU works; rephrase it at leisure.",
        action="keep",
        effort="auto",
        examples=unchanged("print('CUDA is slow today')\n"),
        kept=kept.TEXTS,
    ),
    Rule(
        id="ACC146",
        name="own-key",
        title="Keys of the program's own dictionaries and configuration",
        why='`config["use_cuda"]` reads what this program or its configuration file wrote.',
        ascend="Nothing.",
        action="keep",
        effort="auto",
        examples=unchanged("config = {'use_cuda': 1}\nprint(config['use_cuda'])\n"),
        kept=kept.KEYS,
    ),
    Rule(
        id="ACC147",
        name="path-or-address",
        title="Paths, file names, addresses and host names",
        why="`/data/cuda_runs/a.pt` and `tcp://cuda-node1:23456` name a file and a machine. Tools "
        "that replace words turn them into files and machines that do not exist.",
        ascend="Nothing.",
        action="keep",
        effort="auto",
        examples=unchanged("path = '/data/cuda_runs/last.pt'\n"),
        kept=kept.PATHS,
    ),
    Rule(
        id="ACC148",
        name="own-module",
        title="Modules of the tree, and uses of what an import brings",
        why="A module of the tree is converted in its own file. Of another package the import is "
        "judged, where it stands, and its uses with it.",
        ascend="Nothing.",
        action="keep",
        effort="auto",
        examples=unchanged("from cuda_tools import cuda_timer\n\ncuda_timer()\n"),
        kept=kept.MODULES,
    ),
    Rule(
        id="ACC149",
        name="unknown-word",
        title="A word of the platform in a place that no rule knows",
        why="Nothing in the tree proves what the word means: it is neither converted nor called "
        "right, but shown.",
        ascend="If it turns out to be a device, write the one that is there.",
        action="flag",
        effort="review",
        examples=unchanged("def f(x):\n    return x.cuda_handle\n"),
        kept=kept.UNKNOWN,
    ),
)
