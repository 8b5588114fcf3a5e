#!/usr/bin/env python3
"""A stream that outlives its router: when the connection breaks, it goes on from another one.

  deploy/examples/resume.py http://router-a:8000 http://router-b:8000 "Tell me a story."

It needs nothing but Python. The first request asks for a stream that can be resumed (`x-volley-resume: new`); the answer
has a token in the same header, and every event an id. The token and the last id, sent with the same body to any router
of the cluster, give the rest of the stream.
"""

import http.client
import json
import sys
import time
import urllib.error
import urllib.request


def events(routers, path, body, attempts=20, wait=0.5):
    """The data of each event of a stream, up to and without `[DONE]`."""
    headers = {"content-type": "application/json", "x-volley-resume": "new"}
    for attempt in range(attempts):
        request = urllib.request.Request(routers[attempt % len(routers)] + path, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                headers["x-volley-resume"] = response.headers["x-volley-resume"]
                event = {}
                for line in response:  # a cut stream ends without [DONE], by an error or not
                    field, _, value = line.decode().rstrip("\n").partition(": ")
                    if field == "data" and value == "[DONE]":
                        return
                    if field:
                        event[field] = value
                    elif "error" in (data := json.loads(event.get("data", "{}"))):
                        break  # the router could not go on; another may
                    elif data:
                        yield data
                        if "id" in event:
                            headers["last-event-id"] = event["id"]
                        event = {}
                    else:
                        event = {}  # a sign of life
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code != 429:
                raise
        except (OSError, http.client.HTTPException):
            pass
        time.sleep(wait)
    raise ConnectionError(f"{attempts} attempts failed")


if __name__ == "__main__":
    *addresses, question = sys.argv[1:]
    ask = {"model": "", "messages": [{"role": "user", "content": question}], "stream": True}
    for address in addresses:
        try:
            with urllib.request.urlopen(address + "/v1/models") as models:
                ask["model"] = json.load(models)["data"][0]["id"]
            break
        except OSError:
            continue  # it is down: another may know
    for chunk in events(addresses, "/v1/chat/completions", ask):
        for choice in chunk["choices"]:
            print(choice["delta"].get("content", ""), end="", flush=True)
    print()
