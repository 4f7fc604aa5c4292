// See ../README.md.
#pragma once

typedef struct cublasContext* cublasHandle_t;
typedef enum cublasStatus : int {} cublasStatus_t;
