// The functions of graph.cpp, which the program looks up in a library that it opens on a GPU.

#pragma once

#include <cstdint>

extern "C" {

// All return null, or an error message that the caller frees with qf_free_message.

// A new pool of memory that captures can share, as two numbers.
char* qf_graph_pool(uint64_t pool[2]);
// Begins to record what this thread's present stream is given, and what autograd adds to it.
char* qf_graph_begin(const uint64_t pool[2], void** graph);
// Ends the recording, which can then be run.
char* qf_graph_end(void* graph);
// Runs a recording on this thread's present stream, with random numbers of the generator as it stands.
char* qf_graph_replay(void* graph);
char* qf_graph_free(void* graph);
}
