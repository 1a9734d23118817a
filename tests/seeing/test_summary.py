from matrixinfer.cli.view.snapshot import Traffic
from matrixinfer.cli.view.summary import summary
from tests.seeing.builders import a_gateway, a_row, a_snapshot


def test_nothing_new_is_no_line():
    assert summary(None, a_snapshot()) == ""
    assert summary(a_snapshot(), a_snapshot(up_s=500.0)) == ""


def test_traffic_is_summed_up():
    total = Traffic(6.0, 100, 480, 4000, 3520, 0, 360, 0.018, 0.087)
    line = summary(a_snapshot(), a_snapshot(served=1300.0, total=total))

    assert line == "1300 requests in all, 6.0/s, 480 tok/s, 88% cached, TTFT p50 18ms p99 87ms, 8 in flight"


def test_endpoints_that_come_and_go_and_new_problems_are_told():
    now = a_snapshot(endpoints=(a_row(0), a_row(1, state="not ready")), problems=("p",))

    assert summary(a_snapshot(), now) == "1 of 2 endpoints ready; p"


def test_a_picker_that_falls_silent_is_told_once_and_when_it_is_back():
    well, silent, longer = (a_snapshot(gateways=(a_gateway(silent_s=silent_s),)) for silent_s in (None, 3.0, 8.0))

    assert summary(well, silent) == "the picker does not answer"
    assert summary(silent, longer) == ""
    assert summary(silent, well) == "the picker answers again"


def test_of_several_gateways_the_silent_one_is_named_and_the_others_go_on():
    well = a_snapshot(gateways=(a_gateway(1), a_gateway(2)))
    one = a_snapshot(gateways=(a_gateway(1), a_gateway(2, 3.0)), served=1300.0)

    assert summary(well, one).startswith("the picker of gateway 2 does not answer; 1300 requests in all, 6.0/s")
    assert summary(one, well).startswith("the picker of gateway 2 answers again")
