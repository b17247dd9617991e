// Draws the people of one pose/1 message over a picture. Coordinates: pixels of the whole picture,
// pixel centres at integers; `scale` leads from there to the canvas. Widths of lines follow y.

const EDGE = "rgba(16, 18, 22, 0.85)";
const NO_ID = "#5a626d";
const ID_COLORS = [
  "#3f8cd6", "#d6524f", "#4fae5d", "#b06bd1", "#d98a2b",
  "#2ba5a0", "#e0699a", "#94795c", "#7d84e0", "#87a63a",
];

export function drawPeople(context, message, skeleton, look) {
  const scaleX = context.canvas.width / message.size[1];
  const scale = context.canvas.height / message.size[0];
  const place = ([x, y]) => [(x + 0.5) * scaleX, (y + 0.5) * scale];
  const people = message.people
    .filter((person) => person.bbox)
    .sort((one, other) => area(one) - area(other)); // who stands nearer comes last, on top
  for (const person of people) {
    const points = person.keypoints.map(([x, y, score], k) => {
      if (score <= 0 || score < look.minScore) return null;
      return place(look.smoothed && person.smoothed ? person.smoothed[k] : [x, y]);
    });
    const width = lineWidth(person, scale, context.canvas);
    if (look.boxes) drawBox(context, person, place, width);
    if (look.skeleton) drawSkeleton(context, person, points, skeleton, look.colors, width);
  }
  if (look.ids) {
    const taken = [];
    for (const person of people.reverse()) drawLabel(context, person, place, look, taken);
  }
}

function area(person) {
  return person.bbox[2] * person.bbox[3];
}

function idColor(id) {
  return id === null ? NO_ID : ID_COLORS[id % ID_COLORS.length];
}

function lineWidth(person, scale, canvas) {
  const [, , w, h] = person.bbox;
  const size = Math.max(Math.sqrt(w * h), w / 2, h / 2) * scale;
  const least = Math.max(1.5, Math.min(canvas.width, canvas.height) / 300);
  return Math.min(Math.max(size / 60, least), 5 * least);
}

function drawBox(context, person, place, width) {
  const [x, y, w, h] = boxOnCanvas(person, place);
  context.lineWidth = Math.max(1.5, width / 2);
  context.strokeStyle = idColor(person.id);
  context.strokeRect(x, y, w, h);
}

function boxOnCanvas(person, place) {
  const [x, y, w, h] = person.bbox;
  const [left, top] = place([x, y]);
  const [right, bottom] = place([x + w, y + h]);
  return [left, top, right - left, bottom - top];
}

function drawSkeleton(context, person, points, skeleton, colors, width) {
  const { limbs, sides } = skeleton;
  const drawn = limbs.filter(([a, b]) => points[a] && points[b]);
  const limbWidth = ([a, b]) => (person.filled[a] || person.filled[b] ? 0.4 * width : width);
  context.lineCap = "round";
  for (const edge of [true, false]) { // first all edges, so that none lies over a limb
    for (const limb of drawn) {
      const [a, b] = limb;
      context.strokeStyle = edge ? EDGE : colors[sides[a] === sides[b] ? sides[a] : "centre"];
      context.lineWidth = limbWidth(limb) + (edge ? width / 2 : 0);
      context.beginPath();
      context.moveTo(...points[a]);
      context.lineTo(...points[b]);
      context.stroke();
    }
  }
  points.forEach((point, k) => {
    if (!point) return;
    context.beginPath();
    context.arc(...point, 0.75 * width, 0, 2 * Math.PI);
    context.lineWidth = 0.5 * width;
    // A keypoint that was filled in, rather than found, is a ring.
    context.strokeStyle = person.filled[k] ? colors[sides[k]] : EDGE;
    context.stroke();
    if (person.filled[k]) return;
    context.fillStyle = "white";
    context.fill();
  });
}

function drawLabel(context, person, place, look, taken) {
  const text = person.id === null ? person.score.toFixed(2)
    : `#${person.id}  ${person.score.toFixed(2)}`;
  const height = look.textHeight;
  context.font = `600 ${height}px system-ui, sans-serif`;
  const pad = 0.35 * height;
  const size = [context.measureText(text).width + 2 * pad, height + 2 * pad];
  const [x, y, width] = boxOnCanvas(person, place);
  const clamp = (value, most) => Math.max(0, Math.min(value, most));
  const left = clamp(x + (width - size[0]) / 2, context.canvas.width - size[0]);
  let top = clamp(y - size[1] - 3 * pad, context.canvas.height - size[1]);
  for (const other of taken.sort((one, two) => two[3] - one[3])) { // from the lowest upwards
    const beside = left > other[2] || left + size[0] < other[0];
    const clear = top > other[3] || top + size[1] < other[1];
    if (!beside && !clear) top = Math.max(0, other[1] - size[1] - 1);
  }
  taken.push([left, top, left + size[0], top + size[1]]);
  context.fillStyle = idColor(person.id);
  context.beginPath();
  context.roundRect(left, top, ...size, pad);
  context.fill();
  context.fillStyle = "white";
  context.textBaseline = "middle";
  context.fillText(text, left + pad, top + size[1] / 2);
}
