"""Make the bucket for MLflow's files, unless it is there. The endpoint and the keys are in boto3's own variables."""

import contextlib
import os

import boto3

s3 = boto3.client("s3")
with contextlib.suppress(s3.exceptions.BucketAlreadyOwnedByYou):
    s3.create_bucket(Bucket=os.environ["S3_BUCKET"])
