# A function whose resources are initialised once and drained on SIGTERM.
#
# Lambda sends SIGTERM only to a function with an extension. `winddown::lambda::run` registers one by itself: no layer is needed for that.

data "aws_partition" "current" {}
data "aws_region" "current" {}
data "aws_caller_identity" "current" {}

data "aws_iam_policy_document" "assume" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["lambda.amazonaws.com"]
    }
  }
}

resource "aws_iam_role" "function" {
  name               = var.name
  assume_role_policy = data.aws_iam_policy_document.assume.json
}

# The log group is made here, so the function needs no right to make any.
data "aws_iam_policy_document" "function" {
  statement {
    actions   = ["logs:CreateLogStream", "logs:PutLogEvents"]
    resources = ["${aws_cloudwatch_log_group.function.arn}:*"]
  }

  dynamic "statement" {
    for_each = var.rds_proxy[*]

    content {
      actions = ["rds-db:connect"]
      resources = [
        "arn:${data.aws_partition.current.partition}:rds-db:${data.aws_region.current.region}:${data.aws_caller_identity.current.account_id}:dbuser:${statement.value.resource_id}/${statement.value.user}",
      ]
    }
  }
}

resource "aws_iam_role_policy" "function" {
  name   = var.name
  role   = aws_iam_role.function.id
  policy = data.aws_iam_policy_document.function.json
}

resource "aws_iam_role_policy_attachment" "vpc" {
  count      = var.vpc == null ? 0 : 1
  role       = aws_iam_role.function.name
  policy_arn = "arn:${data.aws_partition.current.partition}:iam::aws:policy/service-role/AWSLambdaVPCAccessExecutionRole"
}

resource "aws_iam_role_policy_attachment" "insights" {
  count      = var.insights_layer_arn == null ? 0 : 1
  role       = aws_iam_role.function.name
  policy_arn = "arn:${data.aws_partition.current.partition}:iam::aws:policy/CloudWatchLambdaInsightsExecutionRolePolicy"
}

resource "aws_cloudwatch_log_group" "function" {
  #checkov:skip=CKV_AWS_158:CloudWatch encrypts with a key of its own; one of yours is your choice
  #checkov:skip=CKV_AWS_338:how long a log is kept is a variable, and a year is not everybody's
  name              = "/aws/lambda/${var.name}"
  retention_in_days = var.log_retention_days
}

resource "aws_lambda_function" "function" {
  #checkov:skip=CKV_AWS_50:tracing costs, and is your choice
  #checkov:skip=CKV_AWS_115:the limit is a variable: a function without a database needs none
  #checkov:skip=CKV_AWS_116:only asynchronous invocations have a dead letter queue
  #checkov:skip=CKV_AWS_117:the VPC is a variable: a function without a database in one needs none
  #checkov:skip=CKV_AWS_173:Lambda encrypts with a key of its own; there are no secrets among the variables
  #checkov:skip=CKV_AWS_272:signing takes a profile of your organisation
  function_name    = var.name
  role             = aws_iam_role.function.arn
  filename         = var.zip
  source_code_hash = filebase64sha256(var.zip)
  runtime          = "provided.al2023"
  handler          = "bootstrap"
  architectures    = [var.architecture]
  memory_size      = var.memory_mb
  timeout          = var.timeout_s
  layers           = var.insights_layer_arn[*]

  reserved_concurrent_executions = var.reserved_concurrency

  environment {
    variables = var.environment
  }

  # With JSON logging a line without a level counts as INFO: at WARN or above the report of a drain is not sent.
  logging_config {
    log_format            = "JSON"
    application_log_level = var.log_level
    system_log_level      = "INFO"
    log_group             = aws_cloudwatch_log_group.function.name
  }

  dynamic "vpc_config" {
    for_each = var.vpc[*]

    content {
      subnet_ids         = vpc_config.value.subnet_ids
      security_group_ids = vpc_config.value.security_group_ids
    }
  }

  depends_on = [aws_iam_role_policy.function, aws_iam_role_policy_attachment.vpc]
}
