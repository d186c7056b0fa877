"""What a service is allowed to take on. Standard library alone: the command line shows these defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ddpm.deploy.runtime import Precision


@dataclass(frozen=True)
class Settings:
    """The bounds of a service; `ddpm serve --help` says what each is for."""

    allowed_hosts: tuple[str, ...] = ()
    """Names under which the service may be addressed; `*`: any."""
    threads: int = 0
    """Of onnxruntime on the CPU; 0: one a core."""
    precision: Precision = "fp32"
    """Of the network; fp16 where the model was exported so, for GPUs."""
    batch_size: int = 64
    """Images a batch, at most."""
    window: float = 0.005
    """Seconds that an idle service waits for company before it draws a batch that is not full."""
    queue: int = 256
    """Requests that may wait."""
    queue_bytes: int = 2**30
    """Of what all accepted requests draw, and of the pictures that they sent; all is held until a request is done."""
    max_images: int = 1024
    """Of one request."""
    max_bytes: int = 2**26
    """Of what one request draws, as NumPy holds it."""
    max_evaluations: int = 65536
    """Images × evaluations of the network an image, of one request; two evaluations a step with guidance."""
    max_body: int = 2**22
    """Bytes of a request's body, pictures included."""
    body_seconds: float = 10.0
    """For a request's head to arrive, and again for its body."""
    timeout: float = 60.0
    """Seconds from a request to its images."""
    grace: float = 30.0
    """Seconds that accepted requests have once the service is to stop."""
    poll: float = 10.0
    """Seconds between two looks at where a registry's alias points; 0: never."""
