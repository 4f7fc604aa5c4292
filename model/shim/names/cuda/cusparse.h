// See ../README.md.
#pragma once

typedef struct cusparseContext* cusparseHandle_t;
typedef enum cusparseStatus : int {} cusparseStatus_t;
