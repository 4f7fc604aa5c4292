// See ../README.md.
#pragma once

typedef struct cusolverDnContext* cusolverDnHandle_t;
