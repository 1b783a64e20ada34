import type { Series } from './benchmark.ts';

const WIDTH = 640;
const HEIGHT = 360;
const MARGIN = { top: 40, right: 170, bottom: 50, left: 70 };
const TICKS = 5;
/** Colours of Okabe and Ito: distinguishable with colour blindness, and visible on light and dark pages. */
const COLOURS = ['#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00'];

type Point = readonly [x: number, y: number];

/** Draws lines as SVG. The vertical axis starts at 0, so that heights can be compared. */
export function plot({ title, x, y, lines, logarithmic = false }: Series): string {
  const points = Object.values(lines).flat();
  const across = scale(
    points.map(([value]) => value),
    MARGIN.left,
    WIDTH - MARGIN.right,
    logarithmic,
  );
  const top = niceCeiling(Math.max(...points.map(([, value]) => value)));
  const down = (value: number): number =>
    HEIGHT - MARGIN.bottom - (value / top) * (HEIGHT - MARGIN.bottom - MARGIN.top);
  const bottom = HEIGHT - MARGIN.bottom;
  const right = WIDTH - MARGIN.right;
  const parts = [
    text(WIDTH / 2 - MARGIN.right / 2 + 35, 22, title, 'middle', 15),
    text((MARGIN.left + right) / 2, HEIGHT - 10, x, 'middle'),
    `<text transform="translate(16 ${(MARGIN.top + bottom) / 2}) rotate(-90)" text-anchor="middle">${escaped(y)}</text>`,
    ...Array.from({ length: TICKS + 1 }, (_, index) => (top / TICKS) * index).flatMap((value) => [
      `<line x1="${MARGIN.left}" x2="${right}" y1="${down(value)}" y2="${down(value)}" stroke="#8888" stroke-width="0.5"/>`,
      text(MARGIN.left - 8, down(value) + 4, short(value), 'end'),
    ]),
    ...[...new Set(points.map(([value]) => value))].flatMap((value, index, all) => [
      `<line x1="${across(value)}" x2="${across(value)}" y1="${bottom}" y2="${bottom + 5}" stroke="currentColor"/>`,
      ...(isApart(value, all.slice(0, index), across)
        ? [text(across(value), bottom + 20, short(value), 'middle')]
        : []),
    ]),
    ...Object.entries(lines).flatMap(([name, line], index) => [
      drawn(line, across, down, COLOURS[index % COLOURS.length]!),
      ...legend(name, index),
    ]),
  ];
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${HEIGHT}" font-family="sans-serif" font-size="12" fill="#808080" color="#808080">
${parts.join('\n')}
</svg>
`;
}

function drawn(line: Point[], across: Scale, down: Scale, colour: string): string {
  const path = line.map(([x, y]) => `${across(x).toFixed(1)},${down(y).toFixed(1)}`).join(' ');
  const dots = line.map(
    ([x, y]) => `<circle cx="${across(x).toFixed(1)}" cy="${down(y).toFixed(1)}" r="3" fill="${colour}"/>`,
  );
  return `<polyline points="${path}" fill="none" stroke="${colour}" stroke-width="2"/>${dots.join('')}`;
}

function legend(name: string, index: number): string[] {
  const y = MARGIN.top + 10 + index * 20;
  const x = WIDTH - MARGIN.right + 12;
  return [
    `<rect x="${x}" y="${y - 8}" width="10" height="10" fill="${COLOURS[index % COLOURS.length]}"/>`,
    text(x + 16, y + 1, name, 'start', 11),
  ];
}

type Scale = (value: number) => number;

function scale(values: number[], from: number, to: number, logarithmic: boolean): Scale {
  const of = (value: number): number => (logarithmic ? Math.log(value) : value);
  const low = of(Math.min(...values));
  const high = of(Math.max(...values));
  return (value) => from + ((of(value) - low) / (high - low || 1)) * (to - from);
}

/** Whether a label is far enough from the others. Labels that would overlap are omitted. */
function isApart(value: number, others: number[], across: Scale): boolean {
  return others.every((other) => Math.abs(across(value) - across(other)) > 26);
}

/** The next larger number that divides into five round steps. */
function niceCeiling(value: number): number {
  const magnitude = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 2.5, 3, 4, 5, 7.5, 10].map((step) => step * magnitude).find((step) => step >= value)!;
}

function short(value: number): string {
  if (value >= 1_000_000) return `${value / 1_000_000}M`;
  return value >= 1_000 ? `${value / 1_000}k` : String(Number(value.toFixed(1)));
}

function text(x: number, y: number, content: string, anchor: 'start' | 'middle' | 'end', size = 12): string {
  return `<text x="${x}" y="${y}" text-anchor="${anchor}" font-size="${size}">${escaped(content)}</text>`;
}

function escaped(content: string): string {
  return content.replaceAll('&', '&amp;').replaceAll('<', '&lt;');
}
