"""Calls the front door of the simulator with the AWS SDK for Python: one JSON document on standard output says what came.

Its argument is the endpoint. It prints `half` on a line when half of the many invocations are answered, and waits for a line of its
standard input then: so that whoever started it can do something in the middle.
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed

import boto3
from botocore.config import Config

MANY = 1000
AT_ONCE = 16

client = boto3.client(
    "lambda",
    endpoint_url=sys.argv[1],
    region_name="us-east-1",
    aws_access_key_id="nobody",
    aws_secret_access_key="nothing",
    # what fails is to be seen, not tried again
    config=Config(retries={"total_max_attempts": 1}, max_pool_connections=AT_ONCE, read_timeout=120),
)


def invoke(event, kind="RequestResponse"):
    return client.invoke(FunctionName="function", InvocationType=kind, Payload=json.dumps(event).encode())


def answer(event):
    response = invoke(event)
    return response.get("FunctionError"), json.loads(response["Payload"].read())


seen = {}

failed, document = answer({"hello": "Ada"})
seen["sync"] = [failed, document["event"]]
failed, document = answer({"fail": "no stock"})
seen["failed"] = [failed, document["errorMessage"]]
response = invoke({"later": True}, "Event")
seen["async"] = [response["StatusCode"], response["Payload"].read().decode()]
seen["dry_run"] = invoke({}, "DryRun")["StatusCode"]

stream = client.invoke_with_response_stream(FunctionName="function", Payload=b'{"pieces": 5}')["EventStream"]
pieces, complete = [], None
for event in stream:
    if "PayloadChunk" in event:
        pieces.append(event["PayloadChunk"]["Payload"].decode())
    if "InvokeComplete" in event:
        complete = event["InvokeComplete"]
seen["streamed"] = ["".join(pieces), complete]

pids, errors = {}, []
with ThreadPoolExecutor(AT_ONCE) as pool:
    calls = [pool.submit(answer, {"number": number}) for number in range(MANY)]
    for count, call in enumerate(as_completed(calls), 1):
        try:
            failed, document = call.result()
            if failed:
                errors.append(str(document))
            else:
                number = document["event"]["number"]
                pids.setdefault(document["pid"], []).append(number)
        except Exception as error:  # whatever the SDK raises
            errors.append(repr(error))
        if count == MANY // 2:
            print("half", flush=True)
            sys.stdin.readline()
numbers = sorted(number for answered in pids.values() for number in answered)
seen["many"] = {"environments": len(pids), "answered": len(numbers), "each_once": numbers == list(range(MANY)), "errors": errors}
print(json.dumps(seen), flush=True)
