// See ../README.md.
#pragma once

typedef enum cusolverStatus : int {} cusolverStatus_t;
