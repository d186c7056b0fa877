import yaml
from pydantic import BaseModel
from ddpm.config import Params

def explain(params: Params) -> str:
    """params.yaml with every default filled in, as YAML, each key followed by its meaning."""
    return "\n".join(_explained(params, 0))


def _explained(section: BaseModel, depth: int) -> list[str]:
    lines = []
    for key, field in type(section).model_fields.items():
        value, indent = getattr(section, key), "  " * depth
        note = f"  # {field.description}" if field.description else ""
        if isinstance(value, BaseModel):
            lines += [f"{indent}{key}:", *_explained(value, depth + 1)]
        elif isinstance(value, dict):
            lines.append(f"{indent}{key}:")
            for name, entry in value.items():
                lines += [f"{indent}  {name}:", *_explained(entry, depth + 2)]
        else:
            plain = list(value) if isinstance(value, tuple) else value
            text = yaml.safe_dump(plain, default_flow_style=True, width=1000).removesuffix("...\n").strip()
            lines.append(f"{indent}{key}: {text}{note}")
    return lines
