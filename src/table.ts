import Table from 'cli-table3';
import { Help } from 'commander';

/** A space on each side of a cell. */
const PADDING = 2;

/**
 * A table for people. If it does not fit, its widest columns become narrower, and wrap between words.
 *
 * @param options.columns the width to fit into; undefined if nothing limits it
 */
export function renderTable(
  rows: (string | number)[][],
  options: { head?: string[]; columns?: number | undefined } = {},
): string {
  const { head = [], columns = Number.POSITIVE_INFINITY } = options;
  const cells = [head, ...rows].filter((row) => row.length > 0).map((row) => row.map(String));
  const widthsBetween = (separator: RegExp) =>
    cells[0]!.map(
      (_, x) =>
        Math.max(...cells.flatMap((row) => row[x]!.split(separator)).map((part) => part.length)) + PADDING,
    );
  const widths = widthsBetween(/\n/);
  const least = widthsBetween(/\s/);
  const isTooWide = () => widths.reduce((sum, width) => sum + width + 1, 1) > columns;
  const style = { head: [], border: [] };
  if (!isTooWide()) return render(new Table({ head, style }), rows);

  while (isTooWide()) {
    const slack = widths.map((width, x) => (width > least[x]! ? width : 0));
    const widest = slack.indexOf(Math.max(...slack));
    if (slack[widest] === 0) break;
    widths[widest]! -= 1;
  }
  return render(new Table({ head, style, colWidths: widths, wordWrap: true }), rows);
}

function render(table: InstanceType<typeof Table>, rows: (string | number)[][]): string {
  table.push(...rows);
  return table.toString();
}

/** Text with line breaks between words where a line would not fit into so many columns. */
export function wrap(text: string, columns?: number): string {
  return columns === undefined ? text : new Help().boxWrap(text, columns);
}
