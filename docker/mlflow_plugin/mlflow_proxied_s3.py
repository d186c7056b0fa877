"""An S3 store whose files pass through MLflow's server: `--artifacts-destination=proxied-s3://BUCKET`.

With `s3://BUCKET`, the server sends its clients to the store itself for downloads and large uploads. Here only the
server knows the store's address. MLflow makes that offer for every repository that has `MultipartDownloadMixin` or
`MultipartUploadMixin`, and has no setting for it; this one has neither.
"""

from __future__ import annotations

from typing import Any

from mlflow.entities import FileInfo
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository


class ProxiedS3Repository(ArtifactRepository):
    """Passes everything on to MLflow's own repository for S3, and offers no addresses of its own."""

    def __init__(self, artifact_uri: str, *arguments: Any, **options: Any) -> None:
        super().__init__(artifact_uri, *arguments, **options)
        self._s3 = S3ArtifactRepository(artifact_uri.removeprefix("proxied-"), *arguments, **options)

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        self._s3.log_artifact(local_file, artifact_path)

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
        self._s3.log_artifacts(local_dir, artifact_path)

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        return self._s3.list_artifacts(path)

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        self._s3._download_file(remote_file_path, local_path)

    def delete_artifacts(self, artifact_path: str | None = None) -> None:
        self._s3.delete_artifacts(artifact_path)
