"""`shoal latency`: the table of latencies of one network on this device."""

from shoal.batches import device_of
from shoal.cli.console import Session
from shoal.cli.loading import example_for, open_data, open_network, open_workers, pick_device
from shoal.cli.options import LatencyRequest
from shoal.files.writing import write_text
from shoal.pipeline.latency_table import latency_table
from shoal.store import check_output_file


def run_latency(session: Session, request: LatencyRequest) -> int:
    """Carry it out; returns the exit code."""
    session.check_alone("latency")
    check_output_file(request.out)
    device = pick_device(request.device)
    opened = open_network(session, request.model, request.weights, device)
    data = open_data(session, request.data, request.data_options, opened) if request.data else None
    example = example_for(opened, data, request.shape).to(device_of(opened.model))
    batch = example.resized(request.data_options.batch_size)
    workers = open_workers(session, request.worker_options, device)
    with session.progress() as progress:
        table = latency_table(
            opened.model, batch, channels_last=request.channels_last, progress=progress, workers=workers
        )
    write_text(request.out, table.to_json() + "\n")
    if session.as_json:
        session.print_json({"out": str(request.out), "whole_ms": table.whole_ms, "entries": len(table.entries)})
    else:
        session.say(f"{table.whole_ms:.4g} ms for the whole network at batch {batch.size} on {table.device}.")
        session.say(f"{len(table.entries)} kinds of blocks and stand-ins timed: {request.out}")
    return 0
