#!/usr/bin/env python3
"""A stream that outlives its router: when the connection breaks, it goes on from another one.

  deploy/examples/resume.py http://router-a:8000 http://router-b:8000 "Tell me a story."

It needs nothing but Python; an API key comes from VOLLEY_API_KEY, the model is the first that is served. The first request
asks for a stream that can be resumed (`x-volley-resume: new`); the answer has a token in the same header, and every event
an id. The token and the last id, sent with the same body to any router of the cluster, give the rest of the stream.
"""

import http.client
import json
import os
import sys
import time
import urllib.error
import urllib.request


KEY = {"authorization": f"Bearer {os.environ['VOLLEY_API_KEY']}"} if "VOLLEY_API_KEY" in os.environ else {}


def model(routers, attempts=20, wait=0.5):
    """The first model that a router knows of: after a failure they may have to learn again what is served."""
    problem = None
    for attempt in range(attempts):
        request = urllib.request.Request(routers[attempt % len(routers)] + "/v1/models", headers=KEY)
        try:
            with urllib.request.urlopen(request, timeout=10) as models:
                if served := json.load(models)["data"]:
                    return served[0]["id"]
                problem = "no model is served"
        except OSError as error:
            problem = error
        time.sleep(wait)
    raise ConnectionError(f"{attempts} attempts failed; the last: {problem}")


def events(routers, path, body, attempts=20, wait=0.5):
    """The data of each event of a stream, up to and without `[DONE]`."""
    headers = {"content-type": "application/json", "x-volley-resume": "new", **KEY}
    problem = None
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
            problem = f"{request.host}: {error}"
        except (OSError, http.client.HTTPException) as error:
            problem = f"{request.host}: {error}"
        time.sleep(wait)
    raise ConnectionError(f"{attempts} attempts failed; the last: {problem}")


if __name__ == "__main__":
    *addresses, question = sys.argv[1:]
    try:
        ask = {"model": model(addresses), "messages": [{"role": "user", "content": question}], "stream": True}
        for chunk in events(addresses, "/v1/chat/completions", ask):
            for choice in chunk["choices"]:
                print(choice["delta"].get("content", ""), end="", flush=True)
        print()
    except OSError as error:  # HTTPError and ConnectionError are, too
        sys.exit(f"resume.py: {error}")
