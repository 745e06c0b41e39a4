"use strict";
{
  const plane = JSON.parse(document.getElementById("numbers").textContent);
  const { xs, ys } = plane;
  const figures = [...document.querySelectorAll("figure")];
  const choices = [...document.querySelectorAll(".planes input")];
  const told = document.getElementById("told");
  let [x, y, held] = [0, 0, false];

  const chosen = () => Math.max(0, choices.findIndex((choice) => choice.checked));
  const digits = (number) => {
    const size = Math.abs(number);
    const text = size !== 0 && (size < 1e-4 || size >= 1e6) ? number.toExponential(3) : String(+number.toPrecision(4));
    return text.replace("-", "−").replace("e+", "e");
  };
  const nearest = (places, place) =>
    places.reduce((best, other, index) => (Math.abs(other - place) < Math.abs(places[best] - place) ? index : best), 0);

  // The number between the points, or null where one of the four around it is not known.
  const between = (values) => {
    const step = (places, place) => {
      let index = 0;
      while (index < places.length - 2 && places[index + 1] <= place) index += 1;
      return [index, (place - places[index]) / (places[index + 1] - places[index])];
    };
    const [[i, across], [j, up]] = [step(xs, x), step(ys, y)];
    const corners = [values[j][i], values[j][i + 1], values[j + 1][i], values[j + 1][i + 1]];
    const shares = [(1 - across) * (1 - up), across * (1 - up), (1 - across) * up, across * up];
    // A corner that has no share need not be known.
    if (corners.some((corner, index) => corner === null && shares[index] > 0)) return null;
    return corners.reduce((sum, corner, index) => sum + (shares[index] > 0 ? corner * shares[index] : 0), 0);
  };

  const fill = (table, rows) => {
    table.replaceChildren(
      ...rows.map(([name, ...values]) => {
        const row = document.createElement("tr");
        const head = document.createElement("th");
        head.textContent = name;
        const cells = values.map((value) => Object.assign(document.createElement("td"), { textContent: value }));
        row.append(head, ...cells);
        return row;
      }),
    );
  };

  const show = () => {
    const index = chosen();
    const { field, values } = plane.panels[index];
    const number = between(values);
    const [i, j] = [nearest(xs, x), nearest(ys, y)];
    const near = values[j][i];
    fill(document.getElementById("point"), [
      ["x", digits(x)],
      ["y", digits(y)],
      [plane.unit || "number", number === null ? "not known" : digits(number)],
      [`at the nearest point (${digits(xs[i])}, ${digits(ys[j])})`, near === null ? "not known" : digits(near)],
    ]);
    fill(
      document.getElementById("weights"),
      plane.weights.map(({ name, u, v }) => [`weight of ${name}`, digits(+(x * u + y * v).toFixed(6))]),
    );
    document.getElementById("how").textContent = held
      ? "Held: a click lets go of the point; arrow keys move it."
      : "Move over the plane; a click holds the point, arrow keys move it.";
    told.hidden = false;
    figures.forEach((figure, of) => {
      const spot = figure.querySelector(".spot");
      spot.hidden = of !== index;
      if (of !== index) return;
      const picture = [...figure.querySelectorAll("svg")].find((svg) => svg.getBoundingClientRect().width > 0);
      if (!picture) return;
      const [inner, outer] = [picture.getBoundingClientRect(), figure.getBoundingClientRect()];
      const [right, down] = [(x - xs[0]) / (xs.at(-1) - xs[0]), (ys.at(-1) - y) / (ys.at(-1) - ys[0])];
      spot.style.left = `${inner.left - outer.left + inner.width * (field[0] + right * (field[2] - field[0]))}px`;
      spot.style.top = `${inner.top - outer.top + inner.height * (field[1] + down * (field[3] - field[1]))}px`;
    });
  };

  // The point of the plane under the pointer, or null beside the field.
  const under = (figure, event) => {
    const picture = [...figure.querySelectorAll("svg")].find((svg) => svg.getBoundingClientRect().width > 0);
    if (!picture) return null;
    const inner = picture.getBoundingClientRect();
    const { field } = plane.panels[chosen()];
    const right = ((event.clientX - inner.left) / inner.width - field[0]) / (field[2] - field[0]);
    const down = ((event.clientY - inner.top) / inner.height - field[1]) / (field[3] - field[1]);
    if (!(right >= 0 && right <= 1 && down >= 0 && down <= 1)) return null;
    return [xs[0] + right * (xs.at(-1) - xs[0]), ys.at(-1) - down * (ys.at(-1) - ys[0])];
  };

  for (const figure of figures) {
    figure.classList.add("asked");
    figure.addEventListener("pointermove", (event) => {
      const point = under(figure, event);
      if (point && !held) {
        [x, y] = point;
        show();
      }
    });
    figure.addEventListener("click", (event) => {
      const point = under(figure, event);
      if (!point) return;
      held = !held;
      [x, y] = point;
      show();
    });
    figure.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowDown: [0, -1], ArrowUp: [0, 1] }[event.key];
      if (!step) return;
      event.preventDefault();
      held = true;
      const to = (places, place, by) =>
        by === 0 ? place : places[Math.min(places.length - 1, Math.max(0, nearest(places, place) + by))];
      [x, y] = [to(xs, x, step[0]), to(ys, y, step[1])];
      show();
    });
  }
  choices.forEach((choice) => choice.addEventListener("change", show));
  addEventListener("resize", show);

  // `#x,y` holds a point from the beginning; without, it is the lowest of the first panel.
  const asked = location.hash.slice(1).split(",").map(Number);
  if (asked.length === 2 && asked.every(Number.isFinite)) {
    const within = (place, places) => Math.min(places.at(-1), Math.max(places[0], place));
    [x, y, held] = [within(asked[0], xs), within(asked[1], ys), true];
  } else {
    let lowest = Infinity;
    plane.panels[0].values.forEach((row, j) =>
      row.forEach((number, i) => {
        if (number !== null && number < lowest) [lowest, x, y] = [number, xs[i], ys[j]];
      }),
    );
  }
  show();
}
