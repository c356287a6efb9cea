// Preloaded into Debian's adbd: lets it be told where to listen, and listen there.
//
// Off a phone adbd has no property service, and libbase keeps properties in the process's memory.
// They can only be set from within; with none set, adbd listens on every address.
//
// Source: adbd 34.0.5, daemon/main.cpp (service.adb.listen_addrs) and daemon/transport_socket_server
// .cpp; libbase 34.0.5, properties.cpp.

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include <string>

namespace android {
namespace base {
bool SetProperty(const std::string& key, const std::string& value);
}  // namespace base
}  // namespace android

namespace {

// Runs before main, where adbd reads the property.
__attribute__((constructor)) void set_listen_address() {
  const char* address = getenv("ADBD_LISTEN");
  if (address == nullptr || !android::base::SetProperty("service.adb.listen_addrs", address)) {
    fputs("adbprops: ADBD_LISTEN says nowhere to listen\n", stderr);
    _Exit(1);  // rather than listen on every address
  }
}

}  // namespace

// Reading the port out of "tcp:localhost:PORT" leaves errno set, and adbd takes what errno says
// after a listen that succeeded for its failure, and closes the socket.
extern "C" int listen(int fd, int backlog) {
  using Listen = int (*)(int, int);
  static const Listen next = reinterpret_cast<Listen>(dlsym(RTLD_NEXT, "listen"));
  const int result = next(fd, backlog);
  if (result == 0) errno = 0;
  return result;
}
