/**
 * Reads the sessions of a page of docs/ as steps that a test can run.
 *
 * A block of `sql` begins with `-- as LOGIN` and contains what that login types into psql: statements that end with
 * `;`, or with `\gset`, which stores the row's columns as variables for `:'name'`. After the end of a statement, only
 * the comment `-- fails: SQLSTATE` may follow on its line. Lines of `-- => a | b` below it are the rows that it shows.
 *
 * A block of `sh` begins with `# as LOGIN` and contains calls of `masked-logins keys`, of `openssl rand`, or of a
 * worker, which does the work that earlier sessions have started. Blocks of other languages are not run.
 */
import { lineOf, nodesOf } from './markdown.ts';

export type Step =
  | {
      kind: 'sql';
      login: string;
      line: number;
      statement: string;
      gset: boolean;
      fails?: string;
      shows: string[];
    }
  | { kind: 'sh'; login: string; line: number; command: string; fails: boolean }
  | { kind: 'work'; line: number };

export function stepsOf(page: string): Step[] {
  return nodesOf(page).flatMap((node): Step[] => {
    const line = lineOf(node);
    if (node.type !== 'code' || (node.lang !== 'sql' && node.lang !== 'sh')) return [];
    const [first = '', ...lines] = node.value.split('\n');
    const login = /^(?:--|#) as (\w+)/.exec(first)?.[1];
    if (login === undefined) throw new Error(`the block at line ${line} does not begin with "as LOGIN"`);
    return (node.lang === 'sql' ? statementsOf : commandsOf)(lines, login, line + 2);
  });
}

function statementsOf(lines: string[], login: string, firstLine: number): Step[] {
  const steps: (Step & { kind: 'sql' })[] = [];
  let statement = '';
  for (const [index, line] of lines.entries()) {
    const shown = /^-- => (.*)$/.exec(line)?.[1];
    if (shown !== undefined) {
      steps.at(-1)!.shows.push(shown);
      continue;
    }
    const [, code = '', comment] = /^(.*?)(?:\s*-- (.*))?$/.exec(line)!;
    statement = `${statement}\n${code}`.trim();
    const end = /(;|\\gset)$/.exec(statement)?.[1];
    // A semicolon between dollar quotes does not end the statement.
    if (end === undefined || statement.split('$$').length % 2 === 0) continue;
    const fails = /^fails: (\w{5})/.exec(comment ?? '')?.[1];
    steps.push({
      kind: 'sql',
      login,
      line: firstLine + index,
      statement: statement.slice(0, -end.length).trim(),
      gset: end === '\\gset',
      ...(fails === undefined ? {} : { fails }),
      shows: [],
    });
    statement = '';
  }
  if (statement !== '') throw new Error(`a statement does not end with ; or \\gset: ${statement}`);
  return steps;
}

function commandsOf(lines: string[], login: string, firstLine: number): Step[] {
  return lines.map((line, index) => {
    if (/\bworker\b.* --once$/.test(line)) return { kind: 'work', line: firstLine + index };
    const [, command = '', comment = ''] = /^(.*?)(?:\s+# (.*))?$/.exec(line)!;
    return { kind: 'sh', login, line: firstLine + index, command, fails: comment.startsWith('fails') };
  });
}
