"""The proxy in a decode pod: has a prefill engine compute the prompt, then lets the engine beside it answer.

It stands where clients' requests arrive and reads `x-prefiller-host-port`, which the picker sets. Requests without the
header go to the engine as they are. Bytes of answers pass through as they come.
"""
