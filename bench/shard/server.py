#!/usr/bin/env python3
"""Serves the files of a folder from memory, connections kept open: server.py FOLDER; prints its port."""
import asyncio
import pathlib
import sys

FILES = {path.name: path.read_bytes() for path in pathlib.Path(sys.argv[1]).iterdir() if path.is_file()}


async def serve(reader, writer):
    try:
        while True:
            request = await reader.readuntil(b"\r\n\r\n")
            name = request.split(b" ", 2)[1].decode().split("?")[0].rsplit("/", 1)[-1]
            body = FILES.get(name)
            status = b"200 OK" if body is not None else b"404 Not Found"
            body = body or b""
            writer.write(b"HTTP/1.1 %s\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % (status, len(body)))
            writer.write(body)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


asyncio.run(main())
