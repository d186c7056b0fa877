"""Make the bucket for MLflow's files, unless it is there. The endpoint and the keys are in boto3's own variables.

Exit code 2 and one line where the keys do not reach it.
"""

import os
import sys

import boto3
from botocore.exceptions import BotoCoreError, ClientError


def make(bucket: str) -> None:
    """Make it, or see that these keys reach the one that is there, whichever keys it was made with."""
    s3 = boto3.client("s3")
    try:
        s3.create_bucket(Bucket=bucket)
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("BucketAlreadyExists", "BucketAlreadyOwnedByYou"):
            raise
        s3.list_objects_v2(Bucket=bucket, MaxKeys=1)


if __name__ == "__main__":
    try:
        make(os.environ["S3_BUCKET"])
    except (BotoCoreError, ClientError) as error:
        keys = "S3_ACCESS_KEY_ID and S3_SECRET_ACCESS_KEY"
        print(f"bucket {os.environ['S3_BUCKET']}: {error}; is {keys} what the store takes?", file=sys.stderr)
        sys.exit(2)
