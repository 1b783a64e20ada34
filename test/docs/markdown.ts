/** Checks Markdown pages, parsed as GitHub parses them. */
import { existsSync } from 'node:fs';
import path from 'node:path';
import GithubSlugger from 'github-slugger';
import { fromMarkdown } from 'mdast-util-from-markdown';
import { gfmFromMarkdown } from 'mdast-util-gfm';
import { gfm } from 'micromark-extension-gfm';
import { read, type SourceFile } from '../house/files.ts';

type Root = ReturnType<typeof fromMarkdown>;
export type Node = Root['children'][number];

/** A place where a page does not render as intended: what is wrong, and the line. */
type Fault = [problem: string, line: number];

/** The maximum length of a line of prose, in characters. Tables and code may be wider. */
const LINE_LENGTH = 120;

/** The nodes of a page in document order, each before its children. */
export function nodesOf(text: string): Node[] {
  return descendants(fromMarkdown(text, { extensions: [gfm()], mdastExtensions: [gfmFromMarkdown()] }));
}

export function lineOf(node: Node): number {
  return node.position!.start.line;
}

/** What is wrong with a page, such as `there is HTML at line 7`. */
export function faultsOf(page: SourceFile): string[] {
  const nodes = nodesOf(page.text);
  const lines = page.text.split('\n');
  return [
    ...headingsThatSkip(nodes),
    ...rowsOutsideOfTables(nodes, lines),
    ...raggedRows(nodes),
    ...longLines(nodes, lines),
    ...html(nodes),
    ...brokenLinks(nodes, page),
  ].map(([problem, line]) => `${problem} at line ${line}`);
}

/** The first heading is the title. Below it, each level is one deeper than the level above. */
function headingsThatSkip(nodes: Node[]): Fault[] {
  const headings = nodes.filter((node) => node.type === 'heading');
  return headings
    .filter(({ depth }, index) => depth > (headings[index - 1]?.depth ?? 0) + 1 || (depth === 1 && index > 0))
    .map((node) => ['a heading skips a level', lineOf(node)]);
}

/** After an empty line, or without a row of dashes below the header, rows are rendered as text. */
function rowsOutsideOfTables(nodes: Node[], lines: string[]): Fault[] {
  const elsewhere = new Set(
    nodes
      .filter(({ type }) => type === 'table' || type === 'code' || type === 'html')
      .flatMap((node) => linesOf(node)),
  );
  return lines
    .map((text, index) => ({ text, line: index + 1 }))
    .filter(({ text, line }) => /^[\s>]*(?:[-*+] +)?\|/.test(text) && !elsewhere.has(line))
    .map(({ line }) => ['a row is not part of a table', line]);
}

/** GitHub drops surplus cells. Text directly below a table becomes a row as well. */
function raggedRows(nodes: Node[]): Fault[] {
  return nodes
    .filter((node) => node.type === 'table')
    .flatMap(({ children }) => children.filter((row) => row.children.length !== children[0]!.children.length))
    .map((row) => ['a row has more or fewer cells than its header', lineOf(row)]);
}

function longLines(nodes: Node[], lines: string[]): Fault[] {
  return nodes
    .filter(({ type }) => type === 'paragraph' || type === 'heading')
    .flatMap((node) => linesOf(node))
    .filter((line) => [...lines[line - 1]!].length > LINE_LENGTH && canBeBroken(lines[line - 1]!))
    .map((line) => ['a line is too long', line]);
}

/** Whether the line contains a space. A single link does not. */
function canBeBroken(line: string): boolean {
  return /\s/.test(line.trim().replace(/^(?:[-*+>]|[0-9]+\.)\s+/, ''));
}

/** Only comments are allowed. `<NAME>` would not be visible, and Markdown within an HTML element is not rendered. */
function html(nodes: Node[]): Fault[] {
  return nodes
    .filter((node) => node.type === 'html' && !/^<!--((?!-->)[^])*-->$/.test(node.value.trim()))
    .map((node) => ['there is HTML', lineOf(node)]);
}

/** Checks links to files and headings, but not to other sites. */
function brokenLinks(nodes: Node[], page: SourceFile): Fault[] {
  return nodes
    .filter((node) => {
      if (node.type === 'text') return /\]\[|\]\(/.test(node.value);
      if (node.type !== 'link' && node.type !== 'image' && node.type !== 'definition') return false;
      return !/^(?:https?|mailto):/.test(node.url) && !targetExists(node.url, page);
    })
    .map((node) => ['a link has no target', lineOf(node)]);
}

function targetExists(url: string, page: SourceFile): boolean {
  const [file = '', anchor] = url.split('#');
  if (file === '') return anchorsOf(page.text).includes(anchor!);
  const target = path.join(path.dirname(page.name), file);
  return existsSync(target) && (anchor === undefined || anchorsOf(read(target)).includes(anchor));
}

/** A cache, by the text of the page. */
const anchors = new Map<string, string[]>();

function anchorsOf(text: string): string[] {
  const known = anchors.get(text);
  if (known !== undefined) return known;
  const slugger = new GithubSlugger();
  const found = nodesOf(text)
    .filter((node) => node.type === 'heading')
    .map((heading) => slugger.slug(textOf(heading)));
  anchors.set(text, found);
  return found;
}

function textOf(node: Node): string {
  return descendants(node)
    .map((each) => (each.type === 'text' || each.type === 'inlineCode' ? each.value : ''))
    .join('');
}

function linesOf({ position }: Node): number[] {
  const { start, end } = position!;
  return Array.from({ length: end.line - start.line + 1 }, (_, index) => start.line + index);
}

function descendants(node: Root | Node): Node[] {
  if (!('children' in node)) return [];
  return node.children.flatMap((child) => [child, ...descendants(child)]);
}
