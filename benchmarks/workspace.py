"""Virtual environments and exported models that the benchmarks create once and keep in `benchmarks/.work`."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
WORK = Path(__file__).parent / ".work"
"""Safe to delete at any time."""

ENVIRONMENTS: dict[str, list[str]] = {
    "infinity": ["infinity-emb[server,torch]", "sentence-transformers<6", "transformers<5"],
    "sentence-transformers": ["sentence-transformers[onnx,openvino]<6", "transformers<5"],
    "flashrank": ["flashrank"],
    "fastembed": ["fastembed"],
    "aiperf": ["aiperf<0.14"],
}
NEEDS_TORCH = {"infinity", "sentence-transformers"}
CONFIG_FILES = ("config.json", "tokenizer_config.json")
SPECIAL_TOKENS = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}


def environment(name: str) -> Path:
    """Return the Python of the virtual environment `name`, which is created on first use."""
    folder, requirements = WORK / "environments" / name, ENVIRONMENTS[name]
    stamp = folder / ".installed"
    if not stamp.exists() or stamp.read_text() != repr(requirements):
        print(f"Installing {', '.join(requirements)} ...", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        if name in NEEDS_TORCH:
            subprocess.run([ROOT / "scripts" / "install_cpu_torch", folder], check=True)
        subprocess.run([folder / "bin" / "pip", "install", "--quiet", *requirements], check=True)
        stamp.write_text(repr(requirements))
    return folder / "bin" / "python"


def identity(model: Path) -> str:
    """A name for the folder that changes when its files change."""
    return f"{model.name}-{max(file.stat().st_mtime_ns for file in model.iterdir()):x}"


def exported(model: Path, backend: Any, precision: Any) -> Path:
    """Export the model, or reuse an earlier export.

    The export is forced, because models with random weights fail the comparison of rankings. The folder also gets the
    files that other libraries need.
    """
    from app.export.command import export_model

    folder = WORK / "models" / f"{identity(model)}-{backend}-{precision}"
    if not folder.exists():
        export_model(str(model), backend, precision, folder, force=True)
        for name in CONFIG_FILES:
            shutil.copy(model / name, folder / name)
        # Some libraries would truncate at the length that the model was trained with.
        tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
        tokenizer.pop("max_length", None)
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
        (folder / "special_tokens_map.json").write_text(json.dumps(SPECIAL_TOKENS))
    return folder
