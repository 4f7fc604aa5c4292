// Errors across the border to C: every function of the shim returns null, or a message that the
// caller frees with qf_free_message.

#pragma once

#include <c10/util/Exception.h>

#include <cstdlib>
#include <cstring>
#include <exception>

namespace qf {

inline char* message_of(const char* text) {
  char* copy = strdup(text);
  return copy ? copy : strdup("");
}

template <class F>
char* protect(F f) {
  try {
    f();
    return nullptr;
  } catch (const c10::Error& error) {
    return message_of(error.what_without_backtrace());
  } catch (const std::exception& error) {
    return message_of(error.what());
  } catch (...) {
    return message_of("unknown C++ exception");
  }
}

}  // namespace qf
