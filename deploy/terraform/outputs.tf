output "arn" {
  description = "The function's ARN."
  value       = aws_lambda_function.function.arn
}

output "log_group" {
  description = "Where the report of each drain is, as one line of JSON."
  value       = aws_cloudwatch_log_group.function.name
}
