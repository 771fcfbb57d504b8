"""Hostile commands in full, each in a process of its own: `make fuzz`.

Each must be refused in one line, in seconds, and write nothing. tests/test_fuzz.py tries thousands
of settings in one process; here are those of whole command lines: what Hydra makes of them, the
environment, files and servers. Takes some minutes, so it is not a part of the suite.
"""

import dataclasses
import os
import re
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 120
"""Seconds after which a command counts as hanging."""
QUICK_S = 3
SECRET = "sk-4f9a1c"
COMMANDS = """
# groups that are null, numbers or lists
backbone=null
backbone=[1,2]
clipping=5
clipping=null
clipping={}
data=0
sde=true
reward=1.5
eval=[]
eval.gold.pickscore=5
logger.sinks.wandb=5
+logger.sinks.console=5
clipping.ratio=5
clipping.ratio=null
clipping.ratio._target_=grpo_guard.kl.none.NoKl
clipping.ratio._partial_=abc
clipping._partial_=true
+clipping._partial_=abc
clipping._target_=grpo_guard.nothing.Nothing
clipping._target_=no_such_module.Thing
clipping._target_=''
clipping=gard
cliping=guard
kl=none,v
optim._target_=torch.optim.LBFGS
optim._target_=grpo_guard.kl.none.NoKl
optim=5
backbone.lora=5
backbone=sd3_tiny_lora backbone.lora.targets=[]
backbone=sd3_tiny_lora backbone.lora.targets=attn
strategy.device=cpu:foo
strategy.device=cuda:99
strategy.threads=0
strategy.threads=-3
strategy=ddp strategy.processes=0
strategy=ddp strategy.processes=1000000000000
hydra.run.dir=/dev/null/x
_target_=grpo_guard.kl.none.NoKl
# ranges
backbone.resolution=0
backbone.resolution=-64
backbone.resolution=63
backbone.resolution=1e9
backbone.t5_tokens=-1
backbone=sd3_tiny_lora backbone.lora.alpha=nan
backbone=sd3_tiny_lora backbone.lora.alpha=0
backbone=sd3_tiny_lora backbone.lora.alpha=-1
backbone=sd3_tiny_lora backbone.lora.rank=1000000000000
backbone=sd3_tiny_lora backbone.lora.rank=0
backbone.guidance=inf
backbone.guidance=1e308
backbone.dtype=float8
sde.level=inf
sde.level=1e308
sde.level=-1
sde.level=nan
sde.level=null
optim.lr=inf
optim.lr=1e308
optim.lr=-1
optim.lr=abc
optim.weight_decay=inf
optim.weight_decay=-1
kl=v kl.beta=inf
kl=v kl.beta=-0.1
clipping.high=inf
clipping.low=2
max_skipped=-1
max_failed=2
max_grad_norm=0
max_grad_norm=nan
logger.sinks.wandb.timeout=inf
logger.sinks.wandb.project=''
output=''
reward.name=''
reward=ocr reward.name=failed/x
reward=ocr reward.confidence=2
reward=ocr reward.side=0
reward=remote reward.timeout=inf
reward=remote reward.urls=[]
reward=remote reward.urls=[5]
reward=remote reward.urls=[ftp://host]
resume=5
output=5
seed=1.5
seed=true
iterations=0
iterations=-5
iterations=1e3
steps=1
steps=0
updates=0
updates=7
microbatch=0
microbatch=-1
steps_per_sample=99
checkpoint.every=0
checkpoint.keep=-1
checkpoint.push_to_hub=a/b/c
eval.every=0
eval.alarm.confidence=1
eval.alarm.window=1
ema=average ema.decay=1
sde.window.first=-1
sde.window.first=99
sde=ode
data.families=[]
data.families=[colours]
data.repeats=1
# sizes
data.prompts=1000000000
data.repeats=1000000000
steps=1000000000
eval.prompts=1000000000
eval.steps=1000000000
eval.train_prompts=1000000000
backbone.resolution=1000000000
iterations=10000000000000
seed=10000000000000000000000000
# files and servers that are not there
resume=/nonexistent
resume=/etc/passwd
data=prompts
data=prompts data.path=/nonexistent.txt
data=prompts data.path=/etc
data=prompts data.path=/dev/null
data=geneval data.path=/etc/hostname
backbone.model=/nonexistent
backbone.model=nobody/nothing
backbone.init=/nonexistent
backbone=sd3_medium backbone.model=/nonexistent
reward=remote reward.urls=[http://127.0.0.1:9] reward.retries=0
reward=vlm_score reward.urls=[http://127.0.0.1:9/v1] reward.retries=0
kl._target_=grpo_guard.sde.ode.Ode
output=/dev/null/x
output=/proc/x
output=/etc/passwd
reward=geneval reward.detector=5
# secrets
reward=remote reward.token=sk-4f9a1c
reward=remote reward.token=sk_4f9a1c
reward=remote +reward.tokens=sk-4f9a1c
+api_key=sk-4f9a1c
reward=remote reward.urls=[http://user:sk-4f9a1c@127.0.0.1:9]
reward=remote reward.urls=[ftp://user:sk-4f9a1c@127.0.0.1]
reward=remote reward.urls=http://user:sk-4f9a1c@127.0.0.1:9
reward=remote reward.url=http://user:sk-4f9a1c@127.0.0.1:9
# the environment
RANK=1
RANK=1 WORLD_SIZE=2
RANK=0 WORLD_SIZE=2 strategy=ddp
RANK=0 WORLD_SIZE= strategy=ddp
WORLD_SIZE=abc strategy=ddp
WORLD_SIZE=2 strategy=ddp
RANK=abc WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=1 strategy=ddp
RANK=5 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=1 strategy=ddp
# the grammar
seed
seed=
=5
seed=[
seed={a
seed=${nothing}
seed=${oc.env:NOTHING}
output=${output}
+seed=1
++seed
~seed
~nothing
unknown=1
+unknown=1
experiment=nothing
preset=nothing
published=nothing
+sweeps=nothing
published=flux_flow_guard
--nothing
--cfg=nothing
--config-name=nothing
--config-dir=/nonexistent
-m seed=
-m clipping=guard,gard
""".strip()


@dataclasses.dataclass
class Outcome:
    """What a command did."""

    command: str
    code: int | None
    out: str
    err: str
    seconds: float
    cpu_seconds: float
    files: list[str]

    def faults(self) -> list[str]:
        """Return what is wrong with a refusal; empty if it is as it should be."""
        lines = [line for line in self.err.splitlines() if line != "loading ..."]
        checks = {
            "hang": self.code is None,
            "traceback": "Traceback" in self.err,
            "accepted": self.code == 0,
            "exit code": self.code not in (None, 0, 2),
            "second line": len(lines) != 1 or bool(self.out),
            "no error: line": not any(line.startswith("error: ") for line in lines),
            "secret": SECRET in self.err + self.out or "sk_4f9a1c" in self.err + self.out,
            "files": bool(self.files),
        }
        return [name for name, is_wrong in checks.items() if is_wrong]


def attempt(command: str, folder: Path, cache: Path) -> Outcome:
    """Run scripts/train.py with these words in an empty folder."""
    words = shlex.split(command)
    variables = [word for word in words if re.match(r"[A-Z_]+=", word)]
    environment = {key: value for key, value in os.environ.items() if key != "RANK"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    environment |= {"PYTHONPYCACHEPREFIX": str(cache), "HF_HUB_OFFLINE": "1"}
    environment |= dict(word.split("=", 1) for word in variables)
    arguments = [word for word in words if word not in variables]
    begin, cpu = time.monotonic(), _children_seconds()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "scripts/train.py"), *arguments],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=LIMIT_S)
        code = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        out, err = process.communicate()
        code = None
    seconds = time.monotonic() - begin
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    return Outcome(command, code, out, err, seconds, _children_seconds() - cpu, files)


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Try the commands that contain the first argument, or all; print what is wrong, and counts."""
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    commands = [line for line in COMMANDS.splitlines() if line and line[0] != "#"]
    commands = [line for line in commands if wanted in line]
    outcomes = []
    with tempfile.TemporaryDirectory() as cache:
        for command in commands:
            with tempfile.TemporaryDirectory() as folder:
                outcome = attempt(command, Path(folder), Path(cache))
            outcomes.append(outcome)
            faults = ", ".join(outcome.faults())
            times = f"{outcome.seconds:5.1f} s {outcome.cpu_seconds:5.1f} s of CPU"
            print(f"{times}  {faults or 'refused'}  {command}")
            print(f"    {outcome.err[-500:].strip()}", flush=True)
    report(outcomes)


def report(outcomes: list[Outcome]) -> None:
    """Print how many commands there were, how fast they were refused, and the faults by kind."""
    faults = [fault for outcome in outcomes for fault in outcome.faults()]
    counts = {fault: faults.count(fault) for fault in sorted(set(faults))}
    refused = [outcome for outcome in outcomes if not outcome.faults()]
    quick = sum(outcome.seconds < QUICK_S for outcome in refused)
    cheap = sum(outcome.cpu_seconds < QUICK_S for outcome in refused)
    print(
        f"{len(refused)} of {len(outcomes)} commands were refused in one line,"
        f" {quick} in less than {QUICK_S} s and {cheap} with less than {QUICK_S} s of CPU"
    )
    print(f"faults: {counts or 'none'}")
    raise SystemExit(bool(faults))


if __name__ == "__main__":
    main()
