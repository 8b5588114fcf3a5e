#!/usr/bin/env python3
"""A stream that outlives its router: when the connection breaks, it goes on from another one.

  deploy/examples/resume.py http://router-a:8000 http://router-b:8000 "Tell me a story."

It needs nothing but Python; an API key comes from VOLLEY_API_KEY, the model is the first that is served. The first request
asks for a stream that can be resumed (`x-volley-resume: new`); the answer has a token in the same header, and every event
an id. The token and the last id, sent with the same body to any router of the cluster, give the rest of the stream.
"""

import argparse
import http.client
import json
import os
import sys
import time
import urllib.error
import urllib.request


KEY = {"authorization": f"Bearer {os.environ['VOLLEY_API_KEY']}"} if "VOLLEY_API_KEY" in os.environ else {}


def tries(routers, ask, attempts=20, wait=0.5):
    """What `ask(router)` yields, of one router after the other, until it has no problem to return."""
    for attempt in range(attempts):
        router = routers[attempt % len(routers)]
        try:
            if (problem := (yield from ask(router))) is None:
                return
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code != 429:
                raise
            problem = error
        except (OSError, http.client.HTTPException) as error:
            problem = error
        time.sleep(wait)
    raise ConnectionError(f"{attempts} attempts failed; the last: {router}: {problem}")


def model(routers):
    """The first model that a router knows of: after a failure they may have to learn again what is served."""

    def ask(router):
        with urllib.request.urlopen(urllib.request.Request(router + "/v1/models", headers=KEY), timeout=10) as models:
            if not (served := json.load(models)["data"]):
                return "no model is served"
            yield served[0]["id"]

    return next(tries(routers, ask))


def events(routers, path, body):
    """The data of each event of a stream, up to and without `[DONE]`."""
    headers = {"content-type": "application/json", "x-volley-resume": "new", **KEY}

    def ask(router):
        request = urllib.request.Request(router + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as response:
            headers["x-volley-resume"] = response.headers["x-volley-resume"]
            event = {}
            for line in response:  # a cut stream ends without [DONE], by an error or not
                field, _, value = line.decode().rstrip("\n").partition(": ")
                if field == "data" and value == "[DONE]":
                    return None
                if field:
                    event[field] = value
                elif error := (data := json.loads(event.get("data", "{}"))).get("error"):
                    return error["message"]  # the router could not go on; another may
                elif data:
                    yield data
                    if "id" in event:
                        headers["last-event-id"] = event["id"]
                    event = {}
                else:
                    event = {}  # a sign of life
        return "the stream broke off"

    yield from tries(routers, ask)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("router", nargs="+", help="where it listens: http://HOST:PORT")
    parser.add_argument("question")
    asked = parser.parse_args()
    try:
        turn = {"role": "user", "content": asked.question}
        # At temperature 0 two runs say the same, whatever becomes of their routers.
        ask = {"model": model(asked.router), "messages": [turn], "stream": True, "temperature": 0}
        for chunk in events(asked.router, "/v1/chat/completions", ask):
            for choice in chunk["choices"]:
                print(choice["delta"].get("content", ""), end="", flush=True)
        print()
    except urllib.error.HTTPError as error:
        sys.exit(f"resume.py: {error}: {error.read().decode(errors='replace')}")
    except OSError as error:  # ConnectionError is one, too
        sys.exit(f"resume.py: {error}")
