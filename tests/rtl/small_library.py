"""A standard-cell library small enough to reckon with by hand, as Liberty text: no PDK is needed in these tests."""

from __future__ import annotations

GATES = {
    "INV": (1.0, {"A": 1.0}, "!A"),
    "BUF": (1.5, {"A": 1.0}, "A"),
    "NAND2": (2.0, {"A": 1.0, "B": 1.0}, "!(A * B)"),
    "NOR2": (2.0, {"A": 1.0, "B": 1.0}, "!A B'"),
    "XOR2": (4.0, {"A": 2.0, "B": 2.0}, "(A ^ B)"),
    "TIEHI": (0.5, {}, "1"),
    "TIELO": (0.5, {}, "0"),
    "BUFxp5": (0.1, {"A": 0.1}, "A"),
}
TABLE = 'index_1 ("10, 100");\n index_2 ("1, 10");\n values ("{0}, {0}", "{0}, {0}");'


def timing(pin: str, kind: str = "") -> str:
    tables = "".join(
        f"{name} (t) {{ {TABLE.format(10.0)} }}\n"
        for name in ("cell_rise", "cell_fall", "rise_transition", "fall_transition")
    )
    return f'timing () {{ related_pin : "{pin}"; {kind} {tables} }}\n'


def power(energy: float) -> str:
    tables = "".join(f"{edge} (t) {{ {TABLE.format(energy)} }}\n" for edge in ("rise_power", "fall_power"))
    return f"internal_power () {{ related_pg_pin : VDD; {tables} }}\n"


def gate(name: str, area: float, inputs: dict[str, float], function: str) -> str:
    pins = "".join(f"pin ({pin}) {{ direction : input; capacitance : {c}; }}\n" for pin, c in inputs.items())
    arcs = "".join(timing(pin) for pin in inputs) + power(0.5)
    out = f'pin (Y) {{ direction : output; function : "{function}"; max_capacitance : 100; {arcs} }}\n'
    return f"\n  cell ({name}) {{\n area : {area};\n {pins}{out}}}\n"


def adder() -> str:
    pins = "".join(f"pin ({pin}) {{ direction : input; capacitance : 2.0; }}\n" for pin in ("X", "Y", "Z"))
    functions = {"CN": "(!X * !Y) + (!X * !Z) + (!Y * !Z)", "SN": "!(X ^ Y ^ Z)"}
    outs = "".join(
        f'pin ({pin}) {{ direction : output; function : "{f}"; {"".join(timing(x) for x in "XYZ")}{power(1.0)} }}\n'
        for pin, f in functions.items()
    )
    return f"\n  cell (FULLADD) {{\n area : 6.0\n {pins}{outs}}}\n"  # no semicolon behind the area, as in ASAP7


def flip_flop(name: str, area: float, inverted: bool) -> str:
    following, out = ("!D", "IQ") if inverted else ("D", "IQ")
    clock = f"pin (CK) {{ direction : input; clock : true; capacitance : 1.0; {power(0.25)} }}\n"
    data = "pin (D) { direction : input; capacitance : 1.0; }\n"
    arc = timing("CK", "timing_type : rising_edge;")
    q = f'pin (Q) {{ direction : output; function : "{out}"; {arc}{power(0.75)} }}\n'
    ff = f'ff (IQ, IQN) {{ clocked_on : "CK"; next_state : "{following}"; }}\n'
    return f"\n  cell ({name}) {{\n area : {area};\n {ff}{clock}{data}{q}}}\n"


HEADER = """library (small) {
  delay_model : table_lookup;
  time_unit : "1ps";
  voltage_unit : "1V";
  current_unit : "1mA";
  capacitive_load_unit (1, ff);
  nom_voltage : 0.5;
  lu_table_template (t) {
    variable_1 : input_net_transition;
    variable_2 : total_output_net_capacitance;
    index_1 ("10, 100");
    index_2 ("1, 10");
  }
"""


def small_library() -> str:
    cells = "".join(gate(name, *rest) for name, rest in GATES.items())
    return HEADER + cells + adder() + flip_flop("DFFBIG", 9.0, False) + flip_flop("DFFN", 5.0, True) + "}\n"
