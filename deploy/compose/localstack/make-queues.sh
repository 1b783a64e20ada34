#!/usr/bin/env bash
# Creates the login queue and its dead-letter queue. LocalStack runs the scripts in /etc/localstack/init/ready.d.
set -euo pipefail

awslocal sqs create-queue --queue-name login-queue-dead-letter --attributes MessageRetentionPeriod=1209600

awslocal sqs create-queue --queue-name login-queue --attributes '{
  "VisibilityTimeout": "300",
  "RedrivePolicy": "{\"deadLetterTargetArn\":\"arn:aws:sqs:us-east-1:000000000000:login-queue-dead-letter\",\"maxReceiveCount\":\"50\"}"
}'
