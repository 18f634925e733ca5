variable "name" {
  description = "The function's name, and that of its role and log group."
  type        = string
}

variable "zip" {
  description = "A zip with the program, named `bootstrap`, built for the architecture below and for glibc 2.34 or musl."
  type        = string
}

variable "architecture" {
  description = "What the program was built for."
  type        = string
  default     = "arm64"

  validation {
    condition     = contains(["arm64", "x86_64"], var.architecture)
    error_message = "Lambda has arm64 and x86_64."
  }
}

variable "memory_mb" {
  description = "Memory, and with it CPU: 1,769 MB is one vCPU. With 128 MB a drain has 7 % of one."
  type        = number
  default     = 512
}

variable "timeout_s" {
  description = "How long one invocation may take, in seconds."
  type        = number
  default     = 10
}

variable "environment" {
  description = "Variables of the function. No secrets: everybody who may read its configuration sees them."
  type        = map(string)
  default     = {}
}

variable "log_retention_days" {
  description = "For how long CloudWatch keeps the log, in days."
  type        = number
  default     = 30
}

variable "log_level" {
  description = "The least level of the application's lines that is sent. A report of winddown has the level INFO."
  type        = string
  default     = "INFO"
}

variable "insights_layer_arn" {
  description = <<-EOT
    The layer of Lambda Insights for this region and architecture, or null for none. Its version differs by region: look it up with
    `aws lambda list-layer-versions --layer-name arn:aws:lambda:REGION:ACCOUNT:layer:LambdaInsightsExtension-Arm64`, where ACCOUNT is
    580247275435 but in some regions. With it the function has 300 ms from SIGTERM on, else 500 ms.
  EOT
  type        = string
  default     = null
}

variable "vpc" {
  description = "Where the function's network is, or null for none: a database in a VPC is reached from there only."
  type = object({
    subnet_ids         = list(string)
    security_group_ids = list(string)
  })
  default = null
}

variable "rds_proxy" {
  description = "A proxy that the function logs on to with a token of its role, or null for none: the `prx-...` part of its ARN, and the database's user."
  type = object({
    resource_id = string
    user        = string
  })
  default = null
}

variable "reserved_concurrency" {
  description = "The most environments at once, or -1 for no limit. This, times the size of a pool, is what the database must bear."
  type        = number
  default     = -1
}
