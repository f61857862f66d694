"""What importing Accel costs, and what its first use costs over `import torch`.

Least of several runs, each in a fresh process; the peer in the same run is `import torch` itself.
"""

import subprocess
import sys

import environment

RUNS = 7
FIRST_USE = """
device = accel.current_device()
t = torch.ones(1, 1, 4, 4, requires_grad=True)
accel.segmented_attention(t, t, t).sum().backward()
"""
PLAIN_USE = """
t = torch.ones(1, 1, 4, 4, requires_grad=True)
torch.nn.functional.scaled_dot_product_attention(t, t, t).sum().backward()
"""
CASES = {
    "import accel": ("", "import accel"),
    "import torch": ("", "import torch"),
    "first use of accel after torch": ("import torch", "import accel\n" + FIRST_USE),
    "the same with torch alone": ("import torch", PLAIN_USE),
}


def seconds(before: str, code: str) -> float:
    """Wall time of `code` after `before`."""
    program = f"import time\n{before}\nbegun = time.perf_counter()\n{code}\n"
    program += "print(time.perf_counter() - begun)"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return float(result.stdout)


def main() -> None:
    measured = {name: min(seconds(*case) for _ in range(RUNS)) for name, case in CASES.items()}
    ratio = measured["first use of accel after torch"] / measured["import torch"]
    result = {"seconds": measured, "first_use_over_import_torch": ratio, "runs": RUNS}
    print(result)
    print(f"written: {environment.write('import_time', result)}")


if __name__ == "__main__":
    main()
