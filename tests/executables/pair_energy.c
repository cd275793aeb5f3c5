/* A program in C that answers requests of gc_warm.json_lines: the pattern for codes in other languages.

   It tabulates the Lennard-Jones potential when it starts, and answers a distance with the energy of a pair.
   Build: cc -O2 -o pair_energy pair_energy.c -lm */

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { POINTS = 1000000 };
static const double START = 0.8, END = 3.0;
static double table[POINTS + 2];

static double formula(double r)
{
    double attraction = pow(r, -6);
    return 4 * (attraction * attraction - attraction);
}

static double energy(double r)
{
    double place = (r - START) / (END - START) * POINTS;
    if (!(place >= 0 && place < POINTS))
        return formula(r);
    int n = (int)place;
    return table[n] + (place - n) * (table[n + 1] - table[n]);
}

int main(void)
{
    FILE *replies = fdopen(dup(1), "w"); /* the replies' alone: whatever a library prints goes to stderr */
    dup2(2, 1);
    for (int n = 0; n < POINTS + 2; n++)
        table[n] = formula(START + (END - START) * n / POINTS);

    char *line = NULL;
    size_t size = 0;
    while (getline(&line, &size, stdin) > 0) { /* {"id": 7, "request": 1.5}, until the input ends */
        long id;
        char *end = NULL;
        const char *request = strstr(line, "\"request\"");
        if (sscanf(line, " { \"id\" : %ld", &id) != 1 || request == NULL || (request = strchr(request, ':')) == NULL)
            continue;
        double r = strtod(++request, &end), u = energy(r);
        if (end == request || !(r > 0) || !isfinite(u)) /* JSON has no word for what is not finite */
            fprintf(replies, "{\"id\": %ld, \"error\": \"not a distance for which there is an energy\"}\n", id);
        else
            fprintf(replies, "{\"id\": %ld, \"reply\": %.17g}\n", id, u);
        fflush(replies);
    }
    return 0;
}
